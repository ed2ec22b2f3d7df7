# The three stages for many packets at once, and what every verdict leaves behind.

cdef inline void count_verdict(Shard *shard, const Case *case) noexcept nogil:
    cdef RuleCounts *counts
    shard.reasons[case.reason] += 1
    if case.rule and case.reason < REASON_UNKNOWN_SERVER:
        counts = &shard.rules[case.rule]
        counts.packets += 1
        counts.bytes += case.record.length
        counts.flows += case.opened


cdef inline void write_verdict(const Shard *shard, const Case *case, PackedVerdict *verdict) noexcept nogil:
    verdict.action = 1 if case.reason < REASON_UNKNOWN_SERVER else 2
    verdict.reason = case.reason
    verdict.flags = case.opened
    verdict.step = case.step
    verdict.rule = shard.rules[case.rule].handle if case.rule else 0


cdef inline void finish(Shard *shard, Case *case, uint64_t now_ns) noexcept nogil:
    """Remember and count what was decided."""
    if sg_unlikely(case.record.fragment == FRAGMENT_FIRST) and case.step >= 3 and not case.is_malformed:
        remember_fragment(shard, case, now_ns)
    count_verdict(shard, case)


cdef inline void begin_long_way(Case *case) noexcept nogil:
    """Make of a plain packet what ``prepare`` would."""
    case.kind = KIND_KEYED
    case.flow = NIL
    case.rule = 0
    case.opened = case.is_malformed = 0
    case.quote = NULL


cdef void decide_batch(
    Engine *engine, Shard *shard, Case *cases, uint32_t count, const Quote *quotes, uint32_t quotes_count,
    uint64_t now_ns, const uint64_t *times, PackedVerdict **verdicts,
) noexcept nogil:
    """Judge ``count`` packets, at most BATCH, of servers of this shard, which is locked; each at its own of ``times``, if given."""
    cdef uint32_t at, established = 0, indexed = shard.indexed, guessed
    cdef Case *case
    for at in range(count):
        case = &cases[at]
        if sg_unlikely(not prepare_quick(engine, shard, case)):
            if sg_unlikely(not prepare_plain(engine, case)):
                prepare(engine, case, quotes, quotes_count)
                if case.kind != KIND_KEYED:
                    continue
            prefetch_root(engine, &case.key)
            case.hash = hash_of(shard, &case.key)
        sg_prefetch(shard.index + <size_t>chunk_of(shard, case.hash) * CHUNK_WORDS)
    for at in range(count):
        case = &cases[at]
        if sg_likely(case.kind >= KIND_KEYED):
            case.found = first_guess(shard, case.hash)
            if sg_likely(case.found < NOWHERE):
                sg_prefetch(&shard.flows[case.found])
            elif case.kind == KIND_PLAIN:
                prefetch_bundles(engine, case.server.policy, &case.key, case.record.direction)
    for at in range(count):
        case = &cases[at]
        if times != NULL:
            now_ns = times[at]
        if sg_likely(case.kind == KIND_QUICK):
            if sg_likely(go_on(engine, shard, case, now_ns, verdicts[at])):
                established += 1
                if sg_unlikely(engine.taps_open):
                    case.reason, case.quote = REASON_ESTABLISHED, NULL
                    offer(engine, case, verdicts[at], now_ns)
                continue
            guessed = case.found
            if not prepare_plain(engine, case):
                prepare(engine, case, quotes, quotes_count)
                case.found = guessed
        if case.kind == KIND_PLAIN:
            begin_long_way(case)
        if case.found == NOWHERE and shard.indexed != indexed:
            # A packet before this one may have opened it.
            case.found = NIL
        if case.kind != KIND_DECIDED:
            conclude(engine, shard, case, now_ns, NULL)
        finish(shard, case, now_ns)
        write_verdict(shard, case, verdicts[at])
        if sg_unlikely(engine.taps_open):
            offer(engine, case, verdicts[at], now_ns)
    shard.reasons[REASON_ESTABLISHED] += established

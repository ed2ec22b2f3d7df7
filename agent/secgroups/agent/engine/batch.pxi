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


cdef inline void enter(Engine *engine, Shard *shard, Case *case, const Quote *quotes, uint32_t quotes_count) noexcept nogil:
    """The first stage: what to look for, and ask for the memory in which it is indexed."""
    if sg_unlikely(not prepare_quick(engine, shard, case)):
        if sg_unlikely(not prepare_plain(engine, case)):
            prepare(engine, case, quotes, quotes_count)
            if case.kind != KIND_KEYED:
                return
        prefetch_root(engine, &case.key)
        case.hash = hash_of(shard, &case.key)
    sg_prefetch(shard.index + <size_t>chunk_of(shard, case.hash) * CHUNK_WORDS)


cdef inline void locate(Engine *engine, Shard *shard, Case *case) noexcept nogil:
    """The second stage: where that is, and ask for the memory of the flow, or of what rules may say."""
    if sg_unlikely(case.kind < KIND_KEYED):
        return
    case.found = first_guess(shard, case.hash)
    case.indexed = shard.indexed
    if sg_likely(case.found < NOWHERE):
        sg_prefetch(&shard.flows[case.found])
    elif case.kind == KIND_PLAIN:
        prefetch_bundles(engine, case.server.policy, &case.key, case.record.direction)


cdef void take_long_way(
    Engine *engine, Shard *shard, Case *case, const Quote *quotes, uint32_t quotes_count, uint64_t now_ns, PackedVerdict *verdict
) noexcept nogil:
    """The third stage for what is not simply let through."""
    cdef uint32_t guessed = case.found
    if case.kind == KIND_QUICK and not prepare_plain(engine, case):
        prepare(engine, case, quotes, quotes_count)
        case.found = guessed
    if case.kind == KIND_PLAIN:
        begin_long_way(case)
    if case.kind == KIND_KEYED and case.found == NOWHERE and shard.indexed != case.indexed:
        # A packet before this one may have opened it.
        case.found = NIL
    if case.kind != KIND_DECIDED:
        conclude(engine, shard, case, now_ns, NULL)
    finish(shard, case, now_ns)
    write_verdict(shard, case, verdict)
    if sg_unlikely(engine.taps_open):
        offer(engine, case, verdict, now_ns)


cdef inline bint take_short_way(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, PackedVerdict *verdict) noexcept nogil:
    """The third stage for what is simply let through; False if this is not."""
    if sg_unlikely(case.kind != KIND_QUICK or not go_on(engine, shard, case, now_ns, verdict)):
        return False
    if sg_unlikely(engine.taps_open):
        case.reason, case.quote = REASON_ESTABLISHED, NULL
        offer(engine, case, verdict, now_ns)
    return True


cdef void decide_batch(
    Engine *engine, Shard *shard, const Record **records, uint32_t count, const Quote *quotes, uint32_t quotes_count,
    uint64_t now_ns, const uint64_t *times, PackedVerdict **verdicts,
) noexcept nogil:
    """Judge ``count`` packets of servers of this shard, which is locked; each at its own of ``times``, if given.

    While one is judged, the memory of those behind it is on its way: the stages of a packet are AHEAD packets apart.
    """
    cdef Case ring[RING]
    cdef uint32_t ahead = min(AHEAD, count), step, established = 0
    cdef Case *case
    for step in range(count + 2 * ahead):
        if step < count:
            case = &ring[step & (RING - 1)]
            case.record = records[step]
            enter(engine, shard, case, quotes, quotes_count)
        if step >= ahead and step - ahead < count:
            locate(engine, shard, &ring[(step - ahead) & (RING - 1)])
        if step >= 2 * ahead:
            case = &ring[(step - 2 * ahead) & (RING - 1)]
            if times != NULL:
                now_ns = times[step - 2 * ahead]
            if sg_likely(take_short_way(engine, shard, case, now_ns, verdicts[step - 2 * ahead])):
                established += 1
            else:
                take_long_way(engine, shard, case, quotes, quotes_count, now_ns, verdicts[step - 2 * ahead])
    shard.reasons[REASON_ESTABLISHED] += established


cdef inline void decide_one(
    Engine *engine, Shard *shard, const Record *record, const Quote *quotes, uint32_t quotes_count, uint64_t now_ns,
    PackedVerdict *verdict,
) noexcept nogil:
    """Judge one packet of a server of this shard, which is locked."""
    cdef Case case
    case.record = record
    enter(engine, shard, &case, quotes, quotes_count)
    locate(engine, shard, &case)
    if sg_likely(take_short_way(engine, shard, &case, now_ns, verdict)):
        shard.reasons[REASON_ESTABLISHED] += 1
    else:
        take_long_way(engine, shard, &case, quotes, quotes_count, now_ns, verdict)

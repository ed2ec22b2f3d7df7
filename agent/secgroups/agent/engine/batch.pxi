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
    """Make of an ordinary packet what ``prepare`` would."""
    case.kind = KIND_KEYED
    case.flow = NIL
    case.rule = 0
    case.opened = case.is_malformed = 0
    case.quote = NULL
    case.key.remote[0], case.key.remote[1] = case.remote[0], case.remote[1]
    sg_set_word(&case.key.endpoint, case.ends)
    case.key.protocol, case.key.opened_by = case.record.protocol, 0


cdef inline void enter(Engine *engine, Shard *shard, Case *case, const Quote *quotes, uint32_t quotes_count) noexcept nogil:
    """The first stage: what to look for, and ask for the memory in which it is indexed."""
    if sg_unlikely(not prepare_quick(engine, shard, case)):
        prepare(engine, case, quotes, quotes_count)
        case.remote, case.ends, case.chunk = case.record.source, NO_ENDS, <const uint32_t *>sg_nothing
        if case.kind != KIND_KEYED:
            return
        case.hash = hash_of(shard, &case.key)
    case.chunk = chunk_of(shard, case.hash)
    sg_prefetch(case.chunk)


cdef inline bint locate(const Engine *engine, const Shard *shard, Case *case, uint32_t places) noexcept nogil:
    """The second stage: where that is, and ask for the memory of the flow; return whether it is NOWHERE. ``places`` is the shard's."""
    cdef uint32_t fits = sg_match(case.chunk, ~places, tag_of(places, case.hash))
    cdef size_t found
    if sg_likely(fits):
        found = case.chunk[<uint32_t>sg_lowest_bit(fits)] & places
    else:
        found = next_guess(shard, case.chunk, case.hash)
        case.indexed = shard.indexed
        if found >= NOWHERE:
            case.found, case.candidate = <uint32_t>found, <Flow *>sg_nothing
            if found == NOWHERE and case.kind == KIND_QUICK:
                prefetch_root(engine, case.remote)
            return found == NOWHERE
    case.found, case.candidate = <uint32_t>found, &shard.flows[found]
    sg_prefetch(case.candidate)
    return False


cdef inline void look_around(const Engine *engine, Case *case) noexcept nogil:
    """Between the second and the third stage, for what is in no flow: where it comes from, and ask for what rules say of that."""
    if case.found != NOWHERE or case.kind != KIND_QUICK:
        return
    case.whence = find_remote_for(engine, case.server.policy, case.record.direction, case.remote)


cdef void take_long_way(
    Engine *engine, Shard *shard, Case *case, const Quote *quotes, uint32_t quotes_count, uint64_t now_ns, PackedVerdict *verdict
) noexcept nogil:
    """The third stage for what is not simply let through."""
    cdef uint32_t guessed = case.found
    if case.kind == KIND_QUICK:
        if sg_likely(is_ordinary(engine, case)):
            begin_long_way(case)
        else:
            prepare(engine, case, quotes, quotes_count)
            case.found = guessed
    if case.kind == KIND_KEYED and case.found == NOWHERE and shard.indexed != case.indexed:
        # A packet before this one may have opened it.
        case.found = NIL
    if case.kind != KIND_DECIDED:
        conclude(engine, shard, case, now_ns, NULL)
    finish(shard, case, now_ns)
    write_verdict(shard, case, verdict)


cdef inline bint begin_flow(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, PackedVerdict *verdict) noexcept nogil:
    """The third stage for what is ordinary and in no flow: rows 10 to 13; False if it is not so."""
    cdef const Record *record = case.record
    cdef Opening opening
    cdef uint32_t rule = 0
    if case.found != NOWHERE or case.kind != KIND_QUICK or not is_ordinary(engine, case):
        return False
    # A packet before this one may have opened its flow.
    if shard.indexed != case.indexed and not locate(engine, shard, case, shard.places):
        return False
    case.reason, case.step = REASON_NO_RULE, 11
    if record.protocol == TCP and engine.segment_of[record.tcp_flags] != SEGMENT_SYN:
        if now_ns < engine.loose_until_ns:
            return False
        case.reason, case.step = REASON_INVALID_STATE, 10
    else:
        opening.remote[0], opening.remote[1] = case.remote[0], case.remote[1]
        opening.protocol, opening.direction, opening.is_ipv4 = record.protocol, record.direction, record.ip_version == 4
        opening.port = record.destination_port
        rule = find_rule_from(engine, case.server.policy, &opening, &case.whence)
    if rule:
        begin_long_way(case)
        case.found = NIL
        opened_by_rule(engine, shard, case, &opening, rule, now_ns, True)
        count_verdict(shard, case)
        write_verdict(shard, case, verdict)
        return True
    shard.reasons[case.reason] += 1
    (<uint32_t *>verdict)[0] = 2 | <uint32_t>case.reason << 8 | <uint32_t>case.step << 24
    verdict.rule = 0
    return True


cdef inline void enter_all(
    Engine *engine, Shard *shard, const Batch *batch, Case *cases, uint32_t first, uint32_t count
) noexcept nogil:
    cdef const Record *record = &batch.records[first]
    cdef Case *case = cases
    while case < cases + count:
        case.record = record
        enter(engine, shard, case, batch.quotes, batch.quotes_count)
        case += 1
        record += 1


cdef inline uint32_t locate_all(const Engine *engine, const Shard *shard, Case *cases, uint32_t count) noexcept nogil:
    """Return how many are NOWHERE."""
    cdef uint32_t nowhere = 0, places = shard.places
    cdef Case *case = cases
    while case < cases + count:
        nowhere += locate(engine, shard, case, places)
        case += 1
    return nowhere


cdef void look_around_all(const Engine *engine, Case *cases, uint32_t count) noexcept nogil:
    cdef uint32_t at
    for at in range(count):
        look_around(engine, &cases[at])


cdef inline void judge_all(
    Engine *engine, Shard *shard, const Batch *batch, Case *cases, uint32_t first, uint32_t count
) noexcept nogil:
    cdef uint32_t others = 0
    cdef size_t step = batch.times_step
    cdef const uint64_t *now_ns = &batch.times[first * step]
    cdef PackedVerdict *verdict = &batch.verdicts[first]
    cdef Case *case = cases
    while case < cases + count:
        if sg_unlikely(not go_on(engine, shard, case, now_ns[0], verdict)):
            others += 1
            if not begin_flow(engine, shard, case, now_ns[0], verdict):
                take_long_way(engine, shard, case, batch.quotes, batch.quotes_count, now_ns[0], verdict)
        case += 1
        verdict += 1
        now_ns += step
    shard.reasons[REASON_ESTABLISHED] += count - others
    if sg_unlikely(engine.taps_open):
        offer_all(engine, batch, cases, first, count)


cdef void offer_all(Engine *engine, const Batch *batch, Case *cases, uint32_t first, uint32_t count) noexcept nogil:
    cdef uint32_t at
    for at in range(count):
        offer_decided(engine, &cases[at], &batch.verdicts[first + at], batch.times[(first + at) * batch.times_step])


cdef void decide_batch(Engine *engine, Shard *shard, const Batch *batch) noexcept nogil:
    """Judge the packets of servers of this shard, which is locked.

    While some are judged, the memory of those behind them is on its way: AHEAD packets go through a stage together, and the next
    ones through the stage before.
    """
    cdef Case ring[3 * AHEAD]
    cdef Case *entering = ring
    cdef Case *located = ring + 2 * AHEAD
    cdef Case *judged = ring + AHEAD
    cdef uint32_t first = 0, count = batch.count, nowhere = 0, nowhere_before = 0
    while first < count + 2 * AHEAD:
        if first < count:
            enter_all(engine, shard, batch, entering, first, min(count - first, AHEAD))
        nowhere_before = nowhere
        if AHEAD <= first and first - AHEAD < count:
            nowhere = locate_all(engine, shard, located, min(count - (first - AHEAD), AHEAD))
        if 2 * AHEAD <= first:
            if nowhere_before:
                look_around_all(engine, judged, min(count - (first - 2 * AHEAD), AHEAD))
            judge_all(engine, shard, batch, judged, first - 2 * AHEAD, min(count - (first - 2 * AHEAD), AHEAD))
        first += AHEAD
        entering, located, judged = judged, entering, located


cdef inline void decide_locked(Engine *engine, Shard *shard, const Batch *batch) noexcept nogil:
    """Judge the packets of servers of this shard. A change that waits goes first."""
    if batch.count:
        sg_pass(&engine.gate)
        sg_lock(&shard.lock)
        decide_batch(engine, shard, batch)
        sg_unlock(&shard.lock)


cdef inline void decide_one(
    Engine *engine, Shard *shard, const Record *record, const Quote *quotes, uint32_t quotes_count, uint64_t now_ns,
    PackedVerdict *verdict,
) noexcept nogil:
    """Judge one packet of a server of this shard, which is locked."""
    cdef Case case
    case.record = record
    enter(engine, shard, &case, quotes, quotes_count)
    if locate(engine, shard, &case, shard.places):
        look_around(engine, &case)
    if sg_likely(go_on(engine, shard, &case, now_ns, verdict)):
        shard.reasons[REASON_ESTABLISHED] += 1
    elif not begin_flow(engine, shard, &case, now_ns, verdict):
        take_long_way(engine, shard, &case, quotes, quotes_count, now_ns, verdict)
    if sg_unlikely(engine.taps_open):
        offer_decided(engine, &case, verdict, now_ns)

# Going on with the flows and fragments that another process left in a file. What it was killed in the middle of may be there in part:
# only entries that make sense by themselves are kept, and everything that leads to them is made anew.

cdef enum:
    # Entries whose place in the index is asked for before they are looked at.
    KEEP_AHEAD = 16

# Something in a place, by its age: in ascending order the oldest comes first, of the same age the lowest place.
ctypedef struct Aged:
    uint64_t age
    uint32_t place


cdef int by_age(const void *a, const void *b) noexcept nogil:
    cdef const Aged *left = <const Aged *>a
    cdef const Aged *right = <const Aged *>b
    if left.age != right.age:
        return 1 if left.age > right.age else -1
    return 1 if left.place > right.place else -1


cdef inline bint has_rule(const Engine *engine, const Shard *shard, uint32_t rule) noexcept nogil:
    return 0 < rule < engine.rules_room and shard.rules[rule].handle != 0


cdef bint makes_sense(const Engine *engine, const Shard *shard, uint32_t number, const Flow *flow, uint64_t now_ns) noexcept nogil:
    cdef uint8_t state = flow.status & STATE_MASK
    cdef const Endpoint *endpoint
    if not 1 <= state <= STATE_ANSWERED or (flow.protocol == TCP) != (state < STATE_UNANSWERED):
        return False
    if flow.protocol != TCP and (state == STATE_ANSWERED) != ((flow.status & FLAG_ANSWERED) != 0):
        return False
    if (flow.status & FLAG_ODD != 0) != is_odd(flow):
        return False
    if flow.protocol == ICMP or flow.protocol == ICMPV6:
        if flow.remote_port > 0xFF:
            return False
    elif flow.protocol == TCP or flow.protocol == UDP or flow.protocol == SCTP:
        if not flow.local_port or not flow.remote_port:
            return False
    if flow.endpoint >= engine.endpoint_pool.used or not has_rule(engine, shard, flow.rule):
        return False
    endpoint = &engine.endpoints[flow.endpoint]
    if not endpoint.is_held or endpoint.server % engine.shards_count != number:
        return False
    if is_ipv4_pair(endpoint.address[0], endpoint.address[1]) != is_ipv4_pair(flow.remote[0], flow.remote[1]):
        return False
    # Longer than the longest of all time-outs: of another time.
    return now_ns < flow.deadline_ns < now_ns + LONGEST_NS


cdef void keep_times(Shard *shard, uint32_t place, uint64_t now_ns) noexcept nogil:
    """What was seen or opened in the future, or before the machine started, was so now."""
    cdef uint64_t seen = now_ns >> SEEN_SHIFT, opened = now_ns >> OPENED_SHIFT
    if <uint32_t>(<uint32_t>seen - shard.flows[place].seen) > seen:
        shard.flows[place].seen = <uint32_t>seen
    if <uint32_t>(<uint32_t>opened - shard.opened[place]) > opened:
        shard.opened[place] = <uint32_t>opened


cdef int keep_flows(Engine *engine, Shard *shard, uint32_t number, uint64_t now_ns, uint64_t *dropped) except -1:
    """Index, link and count the flows in the memory of a shard that was just begun."""
    cdef Aged *unanswered = <Aged *>malloc(<size_t>shard.flows_max * sizeof(Aged))
    cdef uint32_t at, count = 0, end = 0, newest = <uint32_t>(now_ns >> OPENED_SHIFT)
    cdef Flow *flow
    cdef Key key
    if unanswered == NULL:
        raise MemoryError
    for at in range(shard.flows_max):
        flow = &shard.flows[at]
        if at + KEEP_AHEAD < shard.flows_max and flow[KEEP_AHEAD].status:
            key = key_of(flow + KEEP_AHEAD)
            sg_prefetch(chunk_of(shard, hash_of(shard, &key)))
        if not flow.status:
            continue
        key = key_of(flow)
        if not makes_sense(engine, shard, number, flow, now_ns) or find_entry(shard, &key, hash_of(shard, &key)) != NIL:
            dropped[0] += flow.deadline_ns > now_ns
            flow.status = 0
            continue
        end = at + 1
        keep_times(shard, at, now_ns)
        link_entry(engine, shard, at, now_ns)
        if flow.status & FLAG_ANSWERED:
            stand_in_line(shard, &engine.servers[engine.endpoints[flow.endpoint].server], at)
        else:
            unanswered[count].age, unanswered[count].place = <uint32_t>(shard.opened[at] - newest - 1), at
            count += 1
    shard.never_used = end
    for at in range(end):
        if not shard.flows[at].status:
            shard.links[at].wheel_next = shard.first_free
            shard.first_free = at
    qsort(unanswered, count, sizeof(Aged), by_age)
    for at in range(count):
        flow = &shard.flows[unanswered[at].place]
        stand_in_line(shard, &engine.servers[engine.endpoints[flow.endpoint].server], unanswered[at].place)
    free(unanswered)
    return 0


cdef void keep_shares(Engine *engine, Shard *shard, uint32_t number, uint64_t now_ns, uint64_t *dropped) noexcept nogil:
    """Of servers whose share has become smaller, drop what is too much: unanswered flows first, the oldest first."""
    cdef uint32_t server, place
    for server in range(engine.servers_used):
        while server % engine.shards_count == number and engine.servers[server].flows > engine.server_flows_max:
            place = engine.servers[server].unanswered.first
            if place == NIL:
                place = find_longest_idle(shard, &engine.servers[server], now_ns)
            release_entry(engine, shard, place)
            dropped[0] += 1


cdef bint fragment_makes_sense(const Engine *engine, const Shard *shard, const FirstFragment *held, uint64_t now_ns) noexcept nogil:
    if held.is_held != 1 or not now_ns < held.deadline_ns <= now_ns + FRAGMENT_KEPT_NS:
        return False
    if held.rule and not has_rule(engine, shard, held.rule):
        return False
    return REASON_NEW <= held.reason <= REASON_ESSENTIAL or REASON_UNKNOWN_SERVER <= held.reason <= REASON_REVOKED


cdef int keep_fragments(Engine *engine, Shard *shard, uint64_t now_ns) except -1:
    """Put the first fragments that are held in order of their age, and free the others."""
    cdef Aged *held = <Aged *>malloc(<size_t>shard.fragments_max * sizeof(Aged))
    cdef uint32_t at, count = 0
    if held == NULL:
        raise MemoryError
    shard.fragments_free = NIL
    for at in range(shard.fragments_max):
        if fragment_makes_sense(engine, shard, &shard.fragments[at], now_ns):
            held[count].age, held[count].place = shard.fragments[at].deadline_ns, at
            count += 1
        else:
            memset(&shard.fragments[at], 0, sizeof(FirstFragment))
            shard.fragments[at].bucket_next = shard.fragments_free
            shard.fragments_free = at
    qsort(held, count, sizeof(Aged), by_age)
    for at in range(count):
        link_fragment(shard, held[at].place, bucket_of_held(shard, &shard.fragments[held[at].place]))
    free(held)
    return 0

# Going on with the flows and fragments that another process left in a file. What it was killed in the middle of may be there in part:
# only entries that make sense by themselves are kept, and everything that leads to them is made anew.

ctypedef struct Aged:
    uint64_t age
    uint32_t place


cdef int by_age(const void *a, const void *b) noexcept nogil:
    cdef uint64_t left = (<const Aged *>a).age, right = (<const Aged *>b).age
    return (left > right) - (left < right)


cdef bint makes_sense(const Engine *engine, const Shard *shard, uint32_t number, const Flow *flow, uint64_t now_ns) noexcept nogil:
    cdef uint8_t state = flow.status & STATE_MASK
    cdef const Endpoint *endpoint
    if not 1 <= state <= STATE_ANSWERED or (flow.protocol == TCP) != (state < STATE_UNANSWERED):
        return False
    if flow.endpoint >= engine.endpoint_pool.used or not flow.rule or flow.rule >= engine.rules_room or not shard.rules[flow.rule].handle:
        return False
    endpoint = &engine.endpoints[flow.endpoint]
    if not endpoint.is_held or endpoint.server % engine.shards_count != number:
        return False
    if engine.servers[endpoint.server].flows >= engine.server_flows_max:
        return False
    # Longer than the longest of all time-outs: of another time.
    return now_ns < flow.deadline_ns < now_ns + LONGEST_NS


cdef int keep_flows(Engine *engine, Shard *shard, uint32_t number, uint64_t now_ns, uint64_t *dropped) except -1:
    """Index, link and count the flows in the memory of a shard that was just begun."""
    cdef Aged *unanswered = <Aged *>malloc(<size_t>shard.flows_max * sizeof(Aged))
    cdef uint32_t at, count = 0, end = 0
    cdef Flow *flow
    cdef Key key
    if unanswered == NULL:
        raise MemoryError
    for at in range(shard.flows_max):
        flow = &shard.flows[at]
        if not flow.status:
            continue
        key = key_of(flow)
        if not makes_sense(engine, shard, number, flow, now_ns) or find_entry(shard, &key, hash_of(shard, &key)) != NIL:
            dropped[0] += flow.deadline_ns > now_ns
            flow.status = 0
            continue
        end = at + 1
        link_entry(engine, shard, at, now_ns)
        if not flow.status & FLAG_ANSWERED:
            unlink_unanswered(shard, &engine.servers[engine.endpoints[flow.endpoint].server], at)
            unanswered[count].age, unanswered[count].place = shard.opened[at], at
            count += 1
    shard.never_used = end
    for at in range(end):
        if not shard.flows[at].status:
            shard.links[at].wheel_next = shard.first_free
            shard.first_free = at
    qsort(unanswered, count, sizeof(Aged), by_age)
    for at in range(count):
        flow = &shard.flows[unanswered[at].place]
        link_unanswered(shard, &engine.servers[engine.endpoints[flow.endpoint].server], unanswered[at].place)
    free(unanswered)
    return 0


cdef int keep_fragments(Engine *engine, Shard *shard, uint64_t now_ns) except -1:
    """Put the first fragments that are held in order of their age, and free the others."""
    cdef Aged *held = <Aged *>malloc(<size_t>shard.fragments_max * sizeof(Aged))
    cdef uint32_t at, count = 0
    cdef FirstFragment *found
    if held == NULL:
        raise MemoryError
    shard.fragments_free = NIL
    for at in range(shard.fragments_max):
        found = &shard.fragments[at]
        if (
            found.is_held == 1
            and now_ns < found.deadline_ns <= now_ns + FRAGMENT_KEPT_NS
            and found.rule < engine.rules_room
            and (not found.rule or shard.rules[found.rule].handle)
            and REASON_NEW <= found.reason < REASONS
        ):
            held[count].age, held[count].place = found.deadline_ns, at
            count += 1
        else:
            memset(found, 0, sizeof(FirstFragment))
            found.bucket_next = shard.fragments_free
            shard.fragments_free = at
    qsort(held, count, sizeof(Aged), by_age)
    for at in range(count):
        link_fragment(shard, held[at].place, bucket_of_held(shard, &shard.fragments[held[at].place]))
    free(held)
    return 0

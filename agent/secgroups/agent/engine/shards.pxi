# Taking and giving back memory, and batches across shards.

cdef int fill_tables(Engine *engine, dict tables) except -1:
    cdef int at, other
    for at in range(256):
        engine.segment_of[at] = tables["segments"][at]
        engine.protocol_class[at] = tables["protocol_classes"][at]
        for other in range(2):
            engine.icmp_kinds[other][at] = tables["icmp_kinds"][other][at]
            engine.icmp_requests[other][at] = tables["icmp_requests"][other][at]
    fill_quick_moves(engine, tables)
    for at in range(2):
        for other in range(5):
            for state in range(16):
                engine.moves[at][other][state] = tables["moves"][at][other][state]
    for at in range(4):
        engine.revoked_ns[at] = tables["revoked_ns"][at]
        for other in range(16):
            engine.timeouts_ns[at][other] = tables["timeouts_ns"][at][other]
    engine.connected = tables["connected"]
    engine.reopenable = tables["reopenable"]
    return 0


cdef int fill_quick_moves(Engine *engine, dict tables) except -1:
    cdef int way, flags, state, move
    for way in range(2):
        for flags in range(256):
            for state in range(16):
                move = tables["moves"][way][tables["segments"][flags] - 1][state] if tables["segments"][flags] > SEGMENT_SYN else 0
                engine.quick_moves[flags][way << 4 | state] = 0 if move >= MOVE_IGNORED else move
        engine.quick_moves[QUICK_UDP][way << 4 | STATE_ANSWERED] = STATE_ANSWERED
    for state in range(STATE_UNANSWERED):
        engine.quick_timeouts_ns[state] = tables["timeouts_ns"][tables["protocol_classes"][TCP]][state]
    engine.quick_timeouts_ns[STATE_ANSWERED] = tables["timeouts_ns"][tables["protocol_classes"][UDP]][STATE_ANSWERED]
    return 0


cdef int begin_rules(Engine *engine) except -1:
    begin_pool(&engine.policy_pool, sizeof(Policy))
    begin_pool(&engine.bundle_pool, sizeof(Bundle))
    begin_pool(&engine.prefix_pool, sizeof(Prefix))
    begin_pool(&engine.middle_pool, sizeof(Middle))
    begin_pool(&engine.host_pool, sizeof(Host))
    begin_index(&engine.bundle_index)
    begin_index(&engine.prefix_index)
    begin_index(&engine.middle_index)
    begin_index(&engine.host_index)
    # Number 0 is no prefix.
    take_item(&engine.prefix_pool)
    engine.prefixes = <Prefix *>engine.prefix_pool.items
    engine.roots = <Root *>sg_take_memory(65_536 * sizeof(Root))
    if engine.roots == NULL:
        raise MemoryError
    return 0


cdef void end_rules(Engine *engine) noexcept:
    cdef uint32_t at, other
    for at in range(engine.bundle_pool.used):
        for other in range(engine.bundles[at].others_count if engine.bundles[at].rules != NULL else 0):
            free(engine.bundles[at].others[other].ranges.held)
        if engine.bundles[at].rules != NULL:
            free(engine.bundles[at].others)
            free(engine.bundles[at].tcp.held)
            free(engine.bundles[at].udp.held)
            free(engine.bundles[at].icmp.held)
            free(engine.bundles[at].rules)
    for at in range(engine.host_pool.used):
        free(engine.hosts[at].groups)
    free(engine.policy_pool.items)
    free(engine.bundle_pool.items)
    free(engine.prefix_pool.items)
    free(engine.middle_pool.items)
    free(engine.host_pool.items)
    end_index(&engine.bundle_index)
    end_index(&engine.prefix_index)
    end_index(&engine.middle_index)
    end_index(&engine.host_index)
    sg_give_memory(engine.roots, 65_536 * sizeof(Root))
    memset(engine.ipv6_prefixes, 0, sizeof(engine.ipv6_prefixes))
    engine.ipv6_hosts = 0


cdef void *take_memory(size_t size) except NULL:
    cdef void *made = sg_take_memory(size)
    if made == NULL:
        raise MemoryError(f"{size} bytes for the flow table are not to be had")
    return made


cdef inline size_t whole_pages(size_t size) noexcept nogil:
    return (size + 4095) // 4096 * 4096


cdef size_t kept_bytes(uint32_t flows_max, uint32_t fragments_max) noexcept nogil:
    """Return how much of a file one shard takes."""
    return (
        whole_pages(<size_t>flows_max * sizeof(Flow))
        + whole_pages(<size_t>flows_max * sizeof(Highs))
        + whole_pages(<size_t>flows_max * sizeof(uint32_t))
        + whole_pages(<size_t>fragments_max * sizeof(FirstFragment))
    )


cdef int begin_shard(Engine *engine, Shard *shard, uint32_t number, uint32_t flows_max, uint32_t fragments_max) except -1:
    cdef uint32_t at
    cdef char *kept = engine.file
    shard.flows_max, shard.fragments_max = flows_max, fragments_max
    shard.chunks = flows_max // CHUNK_FILL + 1
    shard.places = (<uint32_t>1 << max(1, (flows_max - 1).bit_length())) - 1
    shard.first_free = NIL
    shard.index = <uint32_t *>take_memory(<size_t>shard.chunks * CHUNK_WORDS * sizeof(uint32_t))
    shard.last_chunk = shard.index + <size_t>(shard.chunks - 1) * CHUNK_WORDS
    if kept == NULL:
        shard.flows = <Flow *>take_memory(<size_t>flows_max * sizeof(Flow))
        shard.highs = <Highs *>take_memory(<size_t>flows_max * sizeof(Highs))
        shard.opened = <uint32_t *>take_memory(<size_t>flows_max * sizeof(uint32_t))
        shard.fragments = <FirstFragment *>take_memory(<size_t>fragments_max * sizeof(FirstFragment))
    else:
        kept += FILE_HEADER_BYTES + EPOCHS_BYTES + number * kept_bytes(flows_max, fragments_max)
        shard.flows = <Flow *>kept
        shard.highs = <Highs *>(kept + whole_pages(<size_t>flows_max * sizeof(Flow)))
        shard.opened = <uint32_t *>(<char *>shard.highs + whole_pages(<size_t>flows_max * sizeof(Highs)))
        shard.fragments = <FirstFragment *>(<char *>shard.opened + whole_pages(<size_t>flows_max * sizeof(uint32_t)))
    shard.links = <Links *>take_memory((<size_t>flows_max + WHEEL_SLOTS) * sizeof(Links))
    for at in range(flows_max, flows_max + WHEEL_SLOTS):
        shard.links[at].wheel_previous = shard.links[at].wheel_next = at
    shard.fragment_buckets_count = fragments_max * 2
    shard.fragment_buckets = <uint32_t *>take_memory(<size_t>shard.fragment_buckets_count * sizeof(uint32_t))
    memset(shard.fragment_buckets, 0xFF, shard.fragment_buckets_count * sizeof(uint32_t))
    if engine.file == NULL:
        # In a file they may be kept ones.
        for at in range(fragments_max):
            shard.fragments[at].bucket_next = at + 1 if at + 1 < fragments_max else NIL
    shard.fragments_oldest = shard.fragments_newest = NIL
    return 0


cdef void end_shard(const Engine *engine, Shard *shard) noexcept:
    sg_give_memory(shard.index, <size_t>shard.chunks * CHUNK_WORDS * sizeof(uint32_t))
    if engine.file == NULL:
        sg_give_memory(shard.flows, <size_t>shard.flows_max * sizeof(Flow))
        sg_give_memory(shard.highs, <size_t>shard.flows_max * sizeof(Highs))
        sg_give_memory(shard.opened, <size_t>shard.flows_max * sizeof(uint32_t))
        sg_give_memory(shard.fragments, <size_t>shard.fragments_max * sizeof(FirstFragment))
    sg_give_memory(shard.links, (<size_t>shard.flows_max + WHEEL_SLOTS) * sizeof(Links))
    sg_give_memory(shard.fragment_buckets, <size_t>shard.fragment_buckets_count * sizeof(uint32_t))
    free(shard.rules)


cdef int grow_rules(Engine *engine, uint32_t room) except -1:
    cdef Rule *rules
    cdef RuleCounts *counts
    cdef uint32_t at
    if room <= engine.rules_room:
        return 0
    for at in range(engine.shards_count):
        counts = <RuleCounts *>realloc(engine.shards[at].rules, <size_t>room * sizeof(RuleCounts))
        if counts == NULL:
            raise MemoryError
        memset(counts + engine.rules_room, 0, <size_t>(room - engine.rules_room) * sizeof(RuleCounts))
        engine.shards[at].rules = counts
    rules = <Rule *>realloc(engine.rules, <size_t>room * sizeof(Rule))
    if rules == NULL:
        raise MemoryError
    memset(rules + engine.rules_room, 0, <size_t>(room - engine.rules_room) * sizeof(Rule))
    engine.rules, engine.rules_room = rules, room
    return 0


cdef int grow_servers(Engine *engine, uint32_t room) except -1:
    cdef Server *grown
    cdef uint32_t at
    if room > engine.servers_room:
        grown = <Server *>realloc(engine.servers, <size_t>room * 2 * sizeof(Server))
        if grown == NULL:
            raise MemoryError
        engine.servers, engine.servers_room = grown, room * 2
    for at in range(engine.servers_used, room):
        memset(&engine.servers[at], 0, sizeof(Server))
        engine.servers[at].unanswered.first = engine.servers[at].unanswered.last = NIL
        engine.servers[at].answered.first = engine.servers[at].answered.last = NIL
        engine.servers[at].ipv4_endpoint = engine.servers[at].ipv6_endpoint = NIL
        engine.servers[at].plain_handle = NIL
    engine.servers_used = max(engine.servers_used, room)
    return 0


cdef uint32_t add_policy(Engine *engine) except? 0xFFFFFFFF:
    cdef uint32_t number = take_item(&engine.policy_pool)
    cdef int way, label
    engine.policies = <Policy *>engine.policy_pool.items
    for way in range(2):
        for label in range(WHOLE_LABELS):
            engine.policies[number].sides[way].whole[label] = NIL
    return number


cdef uint32_t add_endpoint(Engine *engine, uint32_t number, uint64_t first, uint64_t second) except? 0xFFFFFFFF:
    cdef uint32_t made = take_item(&engine.endpoint_pool)
    engine.endpoints = <Endpoint *>engine.endpoint_pool.items
    hold_endpoint(engine, made, number, first, second)
    return made


cdef int hold_endpoint(Engine *engine, uint32_t made, uint32_t number, uint64_t first, uint64_t second) except -1:
    """Make an endpoint of an item that was taken."""
    cdef Server *server = &engine.servers[number]
    cdef Endpoint *endpoint = &engine.endpoints[made]
    cdef bint ipv4 = is_ipv4_pair(first, second)
    endpoint.address[0], endpoint.address[1] = first, second
    endpoint.server, endpoint.is_held = number, 1
    put_into(&engine.endpoint_index, mixed(engine, first ^ number, second), made)
    if not is_plain_source(first, second, ipv4):
        server.has_odd, server.plain_handle = 1, NIL
    if ipv4 and server.ipv4_endpoint == NIL:
        server.ipv4_endpoint, server.ipv4 = made, second
    elif not ipv4 and server.ipv6_endpoint == NIL:
        server.ipv6_endpoint = made
        server.ipv6[0], server.ipv6[1] = first, second
    else:
        server.has_more = 1
    return 0


cdef void remove_endpoint(Engine *engine, uint32_t number) noexcept:
    """Its number stays taken until its flows are swept away. The shortcut to another address of the family is not put back."""
    cdef Endpoint *endpoint = &engine.endpoints[number]
    cdef Server *server = &engine.servers[endpoint.server]
    take_from(&engine.endpoint_index, mixed(engine, endpoint.address[0] ^ endpoint.server, endpoint.address[1]), number)
    endpoint.is_held = 0
    if server.ipv4_endpoint == number:
        server.ipv4_endpoint, server.ipv4 = NIL, 0
    if server.ipv6_endpoint == number:
        server.ipv6_endpoint = NIL


cdef inline Py_ssize_t gather(
    const Engine *engine, uint32_t number, const Record *records, Py_ssize_t count, Picked *picked
) noexcept nogil:
    """Copy the packets of a shard out of ``count`` records, up to a batch of them; return how many were looked at."""
    cdef Py_ssize_t at = 0
    picked.count = 0
    while at < count and picked.count < BATCH:
        if (records[at].server & HANDLE_INDEX_MASK) % engine.shards_count == number:
            picked.records[picked.count], picked.places[picked.count] = records[at], at
            picked.count += 1
        at += 1
    return at


cdef void decide_picked(
    Engine *engine, Batch *batch, Py_ssize_t count, const Record *records, const uint64_t *times, PackedVerdict *verdicts
) noexcept nogil:
    """Judge records shard by shard; the packets of a server keep their order."""
    cdef Picked picked
    cdef Py_ssize_t at, looked
    cdef uint32_t number, place
    batch.records, batch.verdicts = picked.records, picked.verdicts
    if batch.times_step:
        batch.times = picked.times
    for number in range(engine.shards_count):
        at = 0
        while at < count:
            looked = gather(engine, number, &records[at], count - at, &picked)
            for place in range(picked.count if batch.times_step else 0):
                picked.times[place] = times[at + picked.places[place]]
            batch.count = picked.count
            decide_locked(engine, &engine.shards[number], batch)
            for place in range(picked.count):
                verdicts[at + picked.places[place]] = picked.verdicts[place]
            at += looked


cdef void decide_all(
    Engine *engine, const Record *records, Py_ssize_t count, const Quote *quotes, uint32_t quotes_count,
    uint64_t now_ns, const uint64_t *times, PackedVerdict *verdicts,
) noexcept nogil:
    """Judge records in batches. ``times`` is NULL or has one for each record."""
    cdef Batch batch
    cdef Py_ssize_t at = 0
    batch.quotes, batch.quotes_count = quotes, quotes_count
    batch.times, batch.times_step = &now_ns if times == NULL else times, times != NULL
    if engine.shards_count > 1:
        decide_picked(engine, &batch, count, records, times, verdicts)
        return
    while at < count:
        batch.records, batch.verdicts = &records[at], &verdicts[at]
        batch.count = <uint32_t>min(count - at, BATCH)
        decide_locked(engine, engine.shards, &batch)
        batch.times += batch.count * batch.times_step
        at += batch.count

# The flow table of a shard: an index of chunks (one cache line each, a tag and a place a word), entries that never move, a wheel of
# deadlines and, for each server, a line of its unanswered flows in the order of their opening and one of its answered flows.
#
# The wheel is lazy: a packet that renews a flow leaves it where it is, so an entry is found no later than its deadline, and is moved
# on if that has been put off.

cdef inline uint64_t hash_parts(const Shard *shard, uint64_t first, uint64_t second, uint64_t ends, uint64_t what) noexcept nogil:
    """Return the hash of remote address, endpoint with ports, and protocol: two multiplications to 128 bits with secret words."""
    return sg_fold(sg_fold(second ^ shard.seed[0], ends ^ shard.seed[1]) ^ shard.seed[2], first ^ what << 32 ^ shard.seed[3])


cdef inline uint64_t hash_of(const Shard *shard, const Key *key) noexcept nogil:
    cdef uint64_t what = (<uint64_t>key.opened_by << 8) | key.protocol
    return hash_parts(shard, key.remote[0], key.remote[1], sg_word(&key.endpoint), what)


cdef inline uint32_t *chunk_of(const Shard *shard, uint64_t hashed) noexcept nogil:
    """Return the home of a hash, by its upper bits."""
    return shard.index + sg_scale(hashed, shard.chunks) * CHUNK_WORDS


cdef inline uint32_t *next_chunk(const Shard *shard, const uint32_t *chunk) noexcept nogil:
    return <uint32_t *>chunk + CHUNK_WORDS if chunk != shard.last_chunk else shard.index


cdef inline uint32_t tag_of(uint32_t places, uint64_t hashed) noexcept nogil:
    """Return the tag, in the bits of a word that ``places`` leaves. It is never 0: a word of 0 is free."""
    cdef uint32_t tag = <uint32_t>hashed & ~places
    return tag if tag else places + 1


cdef inline bint is_flow_of(const Flow *flow, const Key *key) noexcept nogil:
    if flow.remote[0] != key.remote[0] or flow.remote[1] != key.remote[1] or flow.endpoint != key.endpoint:
        return False
    if flow.local_port != key.local_port or flow.remote_port != key.remote_port or flow.protocol != key.protocol:
        return False
    return not key.opened_by or ((flow.status & FLAG_INGRESS) != 0) == (key.opened_by == INGRESS)


cdef uint32_t guess_behind(const Shard *shard, const uint32_t *chunk, uint64_t hashed) noexcept nogil:
    cdef uint32_t fits
    chunk = next_chunk(shard, chunk)
    fits = sg_match(chunk, ~shard.places, tag_of(shard.places, hashed))
    if fits:
        return chunk[sg_lowest_bit(fits)] & shard.places
    return NIL if chunk[CHUNK_FLOWS] else NOWHERE


cdef inline uint32_t next_guess(const Shard *shard, const uint32_t *chunk, uint64_t hashed) noexcept nogil:
    """Return where a flow with this hash is most likely to be if not in its home chunk: NOWHERE, in the one behind that, or NIL."""
    return guess_behind(shard, chunk, hashed) if sg_unlikely(chunk[CHUNK_FLOWS]) else <uint32_t>NOWHERE


cdef inline uint32_t find_entry(const Shard *shard, const Key *key, uint64_t hashed) noexcept nogil:
    """Return where the flow with ``key`` is, over or not; NIL if it is nowhere."""
    cdef uint32_t tag = tag_of(shard.places, hashed), fits, place, looked
    cdef const uint32_t *chunk = chunk_of(shard, hashed)
    # Of a small table every chunk may have been full at some time, and then none ends the way.
    for looked in range(shard.chunks):
        fits = sg_match(chunk, ~shard.places, tag)
        while fits:
            place = chunk[sg_lowest_bit(fits)] & shard.places
            if is_flow_of(&shard.flows[place], key):
                return place
            fits &= fits - 1
        if not chunk[CHUNK_FLOWS]:
            break
        chunk = next_chunk(shard, chunk)
    return NIL


cdef void put_in_index(Shard *shard, uint32_t place, uint64_t hashed) noexcept nogil:
    """The last word of a chunk counts the entries that found it full and went on."""
    cdef uint32_t *chunk = chunk_of(shard, hashed)
    cdef uint32_t free
    shard.indexed += 1
    while True:
        free = sg_match(chunk, NIL, 0)
        if free:
            chunk[sg_lowest_bit(free)] = tag_of(shard.places, hashed) | place
            return
        chunk[CHUNK_FLOWS] += 1
        chunk = next_chunk(shard, chunk)


cdef void take_from_index(Shard *shard, uint32_t place, uint64_t hashed) noexcept nogil:
    cdef uint32_t *chunk = chunk_of(shard, hashed)
    cdef uint32_t held
    while True:
        held = sg_match(chunk, NIL, tag_of(shard.places, hashed) | place)
        if held:
            chunk[sg_lowest_bit(held)] = 0
            return
        chunk[CHUNK_FLOWS] -= 1
        chunk = next_chunk(shard, chunk)


cdef inline void link_into_wheel(Shard *shard, uint32_t place, uint64_t deadline_ns, uint64_t now_ns) noexcept nogil:
    cdef uint64_t tick = deadline_ns >> WHEEL_SHIFT, last = (now_ns >> WHEEL_SHIFT) + WHEEL_REACH
    cdef uint32_t head
    if tick > last:
        tick = last
    if tick < shard.wheel_tick:
        tick = shard.wheel_tick
    shard.flows[place].wheel = <uint8_t>(tick & (WHEEL_SLOTS - 1))
    head = shard.flows_max + <uint32_t>(tick & (WHEEL_SLOTS - 1))
    shard.links[place].wheel_next = head
    shard.links[place].wheel_previous = shard.links[head].wheel_previous
    shard.links[shard.links[head].wheel_previous].wheel_next = place
    shard.links[head].wheel_previous = place


cdef inline void unlink_from_wheel(Shard *shard, uint32_t place) noexcept nogil:
    cdef Links *links = &shard.links[place]
    shard.links[links.wheel_previous].wheel_next = links.wheel_next
    shard.links[links.wheel_next].wheel_previous = links.wheel_previous


cdef inline void bring_deadline_forward(Shard *shard, uint32_t place, uint64_t now_ns) noexcept nogil:
    """Keep the promise of the wheel for a flow whose deadline has become earlier."""
    cdef Flow *flow = &shard.flows[place]
    cdef uint64_t tick = shard.wheel_tick + ((flow.wheel - shard.wheel_tick) & (WHEEL_SLOTS - 1))
    if flow.deadline_ns >> WHEEL_SHIFT < tick:
        unlink_from_wheel(shard, place)
        link_into_wheel(shard, place, flow.deadline_ns, now_ns)


cdef inline Line *line_of(Shard *shard, Server *server, uint32_t place) noexcept nogil:
    return &server.answered if shard.flows[place].status & FLAG_ANSWERED else &server.unanswered


cdef inline void stand_in_line(Shard *shard, Server *server, uint32_t place) noexcept nogil:
    """Put a flow behind those of its server that are answered as well, or unanswered as well."""
    cdef Links *links = &shard.links[place]
    cdef Line *line = line_of(shard, server, place)
    links.line_next = NIL
    links.line_previous = line.last
    if line.last != NIL:
        shard.links[line.last].line_next = place
    else:
        line.first = place
    line.last = place
    shard.unanswered += line == &server.unanswered


cdef inline void leave_line(Shard *shard, Server *server, uint32_t place) noexcept nogil:
    cdef Links *links = &shard.links[place]
    cdef Line *line = line_of(shard, server, place)
    if links.line_previous != NIL:
        shard.links[links.line_previous].line_next = links.line_next
    else:
        line.first = links.line_next
    if links.line_next != NIL:
        shard.links[links.line_next].line_previous = links.line_previous
    else:
        line.last = links.line_previous
    shard.unanswered -= line == &server.unanswered


cdef inline Key key_of(const Flow *flow) noexcept nogil:
    cdef Key key
    key.remote[0] = flow.remote[0]
    key.remote[1] = flow.remote[1]
    key.endpoint = flow.endpoint
    key.local_port = flow.local_port
    key.remote_port = flow.remote_port
    key.protocol = flow.protocol
    key.opened_by = 0
    if flow.protocol == ICMP or flow.protocol == ICMPV6:
        key.opened_by = INGRESS if flow.status & FLAG_INGRESS else EGRESS
    return key


cdef inline uint32_t take_entry(Shard *shard) noexcept nogil:
    """Return a free entry; there is one. Those used before come first, so that a small population stays in the cache."""
    cdef uint32_t place = shard.first_free
    if place != NIL:
        shard.first_free = shard.links[place].wheel_next
        return place
    shard.never_used += 1
    return shard.never_used - 1


cdef void link_entry(Engine *engine, Shard *shard, uint32_t place, uint64_t now_ns) noexcept nogil:
    """Index, link and count a flow that was written into an entry by other means than a verdict; the caller puts it in line."""
    cdef Flow *flow = &shard.flows[place]
    cdef Endpoint *endpoint = &engine.endpoints[flow.endpoint]
    cdef Key key = key_of(flow)
    link_into_wheel(shard, place, flow.deadline_ns, now_ns)
    put_in_index(shard, place, hash_of(shard, &key))
    shard.rules[flow.rule].users += 1
    endpoint.flows += 1
    engine.servers[endpoint.server].flows += 1
    shard.count += 1


cdef void release_entry(Engine *engine, Shard *shard, uint32_t place) noexcept nogil:
    """Forget the flow at ``place``."""
    cdef Flow *flow = &shard.flows[place]
    cdef Endpoint *endpoint = &engine.endpoints[flow.endpoint]
    cdef Server *server = &engine.servers[endpoint.server]
    cdef Key key = key_of(flow)
    take_from_index(shard, place, hash_of(shard, &key))
    unlink_from_wheel(shard, place)
    leave_line(shard, server, place)
    shard.rules[flow.rule].users -= 1
    endpoint.flows -= 1
    server.flows -= 1
    shard.count -= 1
    flow.status = 0
    shard.links[place].wheel_next = shard.first_free
    shard.first_free = place


cdef uint32_t purge(Engine *engine, Shard *shard, uint64_t now_ns, uint32_t most) noexcept nogil:
    """Look at up to ``most`` entries whose time may be over, forget those whose is, and return how many they were."""
    cdef uint64_t now_tick = now_ns >> WHEEL_SHIFT
    cdef uint32_t head, place, gone = 0, last = NIL
    cdef Flow *flow
    if now_tick - shard.wheel_tick >= WHEEL_SLOTS and now_tick > shard.wheel_tick + WHEEL_SLOTS:
        # Every slot is due; which one comes first does not matter.
        shard.wheel_tick = now_tick - WHEEL_SLOTS + 1
    while most:
        head = shard.flows_max + <uint32_t>(shard.wheel_tick & (WHEEL_SLOTS - 1))
        place = shard.links[head].wheel_next
        # From ``last`` on are those that were put off into this same slot, which comes round again.
        if place == head or place == last:
            if shard.wheel_tick >= now_tick:
                break
            shard.wheel_tick += 1
            last = NIL
            continue
        most -= 1
        flow = &shard.flows[place]
        if flow.deadline_ns <= now_ns:
            shard.expired += 1
            gone += 1
            release_entry(engine, shard, place)
            continue
        unlink_from_wheel(shard, place)
        link_into_wheel(shard, place, flow.deadline_ns, now_ns)
        if last == NIL and shard.flows_max + flow.wheel == head:
            last = place
    return gone


cdef inline void purge_a_few(Engine *engine, Shard *shard, uint64_t now_ns) noexcept nogil:
    """The same for a packet that finds room anyway; mostly nothing is due."""
    cdef uint32_t head = shard.flows_max + <uint32_t>(shard.wheel_tick & (WHEEL_SLOTS - 1))
    if shard.links[head].wheel_next != head or shard.wheel_tick < now_ns >> WHEEL_SHIFT:
        purge(engine, shard, now_ns, PURGE_ALWAYS)


cdef uint32_t count_expired(Engine *engine, Shard *shard, uint64_t now_ns, uint32_t most, uint32_t server) noexcept nogil:
    """Return how many flows of ``server`` (NIL: of any) ``purge`` would forget."""
    cdef uint64_t now_tick = now_ns >> WHEEL_SHIFT, tick = shard.wheel_tick
    cdef uint32_t head, place, found = 0
    if now_tick > tick + WHEEL_SLOTS:
        tick = now_tick - WHEEL_SLOTS + 1
    while tick <= now_tick and most:
        head = shard.flows_max + <uint32_t>(tick & (WHEEL_SLOTS - 1))
        place = shard.links[head].wheel_next
        while place != head and most:
            most -= 1
            if shard.flows[place].deadline_ns <= now_ns:
                found += server == NIL or engine.endpoints[shard.flows[place].endpoint].server == server
            place = shard.links[place].wheel_next
        tick += 1
    return found


cdef void evict(Engine *engine, Shard *shard, uint32_t place) noexcept nogil:
    if shard.flows[place].status & FLAG_ANSWERED:
        shard.evicted_answered += 1
    else:
        shard.evicted_unanswered += 1
    release_entry(engine, shard, place)


cdef uint32_t find_oldest_unanswered(Engine *engine, Shard *shard, uint32_t number) noexcept nogil:
    """Return the unanswered flow with the oldest opening of any server of the shard, NIL if there is none."""
    cdef uint32_t at, place, found = NIL, opened = 0, order = 0
    if not shard.unanswered:
        return NIL
    for at in range(engine.servers_used):
        if at % engine.shards_count != number:
            continue
        place = engine.servers[at].unanswered.first
        if place == NIL:
            continue
        if found == NIL or <int32_t>(shard.opened[place] - opened) < 0 or (
            shard.opened[place] == opened and engine.servers[at].name_order < order
        ):
            found, opened, order = place, shard.opened[place], engine.servers[at].name_order
    return found


cdef uint32_t find_largest(Engine *engine, uint32_t own, uint32_t number) noexcept nogil:
    """Return the server that holds the most flows of the shard, other than ``own``; NIL if there is none."""
    cdef uint32_t at, found = NIL
    cdef Server *server
    for at in range(engine.servers_used):
        server = &engine.servers[at]
        if at == own or not server.flows or at % engine.shards_count != number:
            continue
        if found == NIL or server.flows > engine.servers[found].flows or (
            server.flows == engine.servers[found].flows and server.name_order < engine.servers[found].name_order
        ):
            found = at
    return found


cdef uint32_t find_longest_idle(Shard *shard, Server *server, uint64_t now_ns) noexcept nogil:
    """Return the longest idle of the first answered flows of ``server``, which has some; those looked at go to the end of the line."""
    cdef uint32_t now = <uint32_t>(now_ns >> SEEN_SHIFT), place = server.answered.first, found, count = 0, at
    cdef uint32_t places[IDLE_SAMPLE]
    while place != NIL and count < IDLE_SAMPLE:
        sg_prefetch(&shard.flows[place])
        places[count] = place
        place = shard.links[place].line_next
        count += 1
    found = places[0]
    for at in range(1, count):
        if now - shard.flows[places[at]].seen > now - shard.flows[found].seen:
            found = places[at]
    if place != NIL:
        shard.links[server.answered.last].line_next = places[0]
        shard.links[places[0]].line_previous = server.answered.last
        shard.links[places[count - 1]].line_next = NIL
        server.answered.last = places[count - 1]
        shard.links[place].line_previous = NIL
        server.answered.first = place
    return found


cdef inline uint32_t looks_when_full(const Shard *shard, uint64_t now_ns) noexcept nogil:
    return PURGE_WHEN_FULL + <uint32_t>min((now_ns - shard.full_ns) >> PURGE_SHIFT, <uint64_t>(PURGE_MOST - PURGE_WHEN_FULL))


cdef inline uint32_t purge_when_full(Engine *engine, Shard *shard, uint64_t now_ns) noexcept nogil:
    cdef uint32_t most = looks_when_full(shard, now_ns)
    shard.full_ns = now_ns
    return purge(engine, shard, now_ns, most)


cdef bint find_room(Engine *engine, Shard *shard, uint32_t server, uint64_t now_ns, bint commit) noexcept nogil:
    """Return whether ``server`` can have one more flow; with ``commit`` there is room for it then."""
    cdef Server *own = &engine.servers[server]
    cdef uint32_t number = server % engine.shards_count, place, largest
    if own.flows >= engine.server_flows_max:
        if commit:
            purge_when_full(engine, shard, now_ns)
            if own.flows < engine.server_flows_max:
                return True
        elif count_expired(engine, shard, now_ns, looks_when_full(shard, now_ns), server):
            return True
        place = own.unanswered.first
    elif shard.count < shard.flows_max:
        if commit:
            purge_a_few(engine, shard, now_ns)
        return True
    else:
        if commit:
            if purge_when_full(engine, shard, now_ns):
                return True
        elif count_expired(engine, shard, now_ns, looks_when_full(shard, now_ns), NIL):
            return True
        if <uint64_t>own.flows * shard.servers < shard.flows_max:
            largest = find_largest(engine, server, number)
            if largest == NIL:
                return False
            if not commit:
                return True
            place = engine.servers[largest].unanswered.first
            if place == NIL:
                place = find_longest_idle(shard, &engine.servers[largest], now_ns)
        else:
            place = own.unanswered.first
            if place == NIL:
                place = find_oldest_unanswered(engine, shard, number)
    if place == NIL:
        return False
    if commit:
        evict(engine, shard, place)
    return True


cdef void carry(Shard *shard, const Flow *flow, bint by_answerer, bint packets, bint bytes) noexcept nogil:
    """Lower halves of the counts of a flow of the table have gone round."""
    cdef Highs *highs = &shard.highs[flow - shard.flows]
    highs.packets[by_answerer] += packets
    highs.bytes[by_answerer] += bytes


cdef inline void count_packet(Shard *shard, Flow *flow, uint32_t by_answerer, uint32_t length, bint commit) noexcept nogil:
    """Modulo 2**40 packets and 2**48 bytes."""
    if sg_unlikely(sg_add(&flow.packets[by_answerer], 1)) and commit:
        carry(shard, flow, by_answerer, True, False)
    if sg_unlikely(sg_add(&flow.bytes[by_answerer], length)) and commit:
        carry(shard, flow, by_answerer, False, True)


cdef inline bint has_packets(const Shard *shard, const Flow *flow, uint32_t place, bint by_answerer) noexcept nogil:
    return flow.packets[by_answerer] or shard.highs[place].packets[by_answerer]

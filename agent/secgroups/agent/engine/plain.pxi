# The short way for nearly all packets: whole TCP and UDP packets at a server's first addresses, in a flow that is answered and was
# judged in this epoch. What rows 3 to 6 ask of such a packet was asked when the flow was opened, or shows in the look-up itself.
# Whatever is out of the ordinary goes the long way, from its beginning.

cdef inline bint is_plain_source(uint64_t first, uint64_t second, bint ipv4) noexcept nogil:
    """Whether an address is none that nothing comes from. It may also be an ordinary one near those."""
    cdef uint8_t octet
    if ipv4:
        octet = <uint8_t>(second >> 32)
        return <uint8_t>(octet - 1) < 126 or <uint8_t>(octet - 128) < 96
    return first != 0 and <uint8_t>first != 0xFF


cdef inline bint prepare_quick(Engine *engine, const Shard *shard, Case *case) noexcept nogil:
    """Work out where the flow of a packet would be, if it is whole, TCP or UDP, and at an address of a server in force."""
    cdef Record *record = <Record *>case.record
    cdef uint32_t number = record.server & HANDLE_INDEX_MASK, endpoint, ports, turn, shape = sg_half_word(&record.protocol)
    cdef uint64_t *here
    cdef const Server *server
    cdef bint ipv4 = True
    # Nearly all are of one shape, which is seen at once.
    if sg_unlikely(((shape & SHAPE_MASK) - SHAPE_TCP) & ~<uint32_t>SHAPE_EGRESS):
        if (record.protocol != TCP and record.protocol != UDP) or <uint8_t>(record.direction - 1) > 1:
            return False
        ipv4 = record.ip_version == 4
        if not ipv4 and record.ip_version != 6:
            return False
    if sg_unlikely(number >= engine.servers_used or sg_half_word(&record.fragment)):
        return False
    server = case.server = &engine.servers[number]
    if sg_unlikely(server.plain_handle != record.server):
        return False
    # Ingress is 1 and comes to the destination, which is the second address, 16 bytes on. Its ports change places, 16 bits.
    turn = shape >> 12 & 16
    here = <uint64_t *>(<char *>record.source + turn)
    case.remote = <uint64_t *>(<char *>record.source + (turn ^ 16))
    if sg_likely(ipv4 and server.ipv4 == here[1] and not here[0]):
        endpoint = server.ipv4_endpoint
    elif not ipv4 and server.ipv6[1] == here[1] and server.ipv6[0] == here[0] and server.ipv6_endpoint != NIL:
        endpoint = server.ipv6_endpoint
    else:
        if not server.has_more or is_ipv4_pair(here[0], here[1]) != ipv4:
            return False
        endpoint = find_endpoint(engine, server, here[0], here[1], ipv4)
        if endpoint == NIL:
            return False
    ports = sg_rotate(sg_half_word(&record.source_port), turn)
    case.ends = <uint64_t>ports << 32 | endpoint
    case.hash = hash_parts(shard, case.remote[0], case.remote[1], case.ends, record.protocol)
    case.kind = KIND_QUICK
    return True


cdef inline bint is_ordinary(const Engine *engine, const Case *case) noexcept nogil:
    """Whether rows 3 to 6 have nothing against a packet for which ``prepare_quick`` said yes. If not, they may still have nothing."""
    cdef const Record *record = case.record
    cdef bint ipv4 = record.ip_version == 4
    if sg_unlikely(not record.source_port or not record.destination_port):
        return False
    if record.protocol == TCP:
        if sg_unlikely(engine.segment_of[record.tcp_flags] == SEGMENT_INVALID):
            return False
    elif record.source_port < 1024 and record.destination_port < 1024:
        # The ports of DHCP are among those.
        return False
    if sg_unlikely(<uint32_t>case.ends == NIL):
        return False
    return is_ipv4_pair(case.remote[0], case.remote[1]) == ipv4 and is_plain_source(record.source[0], record.source[1], ipv4)


cdef inline bint go_on(Engine *engine, Shard *shard, const Case *case, uint64_t now_ns, PackedVerdict *verdict) noexcept nogil:
    """Let a packet of an answered flow through, if it moves that along; False if anything else is to be done."""
    cdef const Record *record = case.record
    cdef Flow *flow = case.candidate
    cdef RuleCounts *counts
    cdef uint64_t deadline_ns
    cdef uint32_t place, state, row = QUICK_UDP, length = record.length
    # Of what is not KIND_QUICK the ends differ, of what is in no flow the status.
    if sg_unlikely(
        (flow.remote[0] ^ case.remote[0]) | (flow.remote[1] ^ case.remote[1]) | (sg_word(&flow.endpoint) ^ case.ends)
        | <uint64_t>(
            flow.epoch ^ case.server.epoch
            | (sg_pair(&flow.protocol) ^ (FLAG_ANSWERED << 8 | record.protocol)) & (QUICK_FLAGS << 8 | 0xFF)
        )
    ):
        return False
    if sg_unlikely(flow.deadline_ns <= now_ns):
        return False
    # Both have the direction in one bit, 1 for ingress: what is left of it says whose packet this is.
    place = (flow.status ^ record.direction << 4) & (FLAG_INGRESS | STATE_MASK)
    if record.protocol == TCP:
        row = record.tcp_flags
    state = engine.quick_moves[row][place]
    if sg_unlikely(not state):
        return False
    flow.status = (flow.status & (0xFF ^ STATE_MASK)) | state
    flow.seen = <uint32_t>(now_ns >> SEEN_SHIFT)
    count_packet(shard, flow, place >> 4, length, True)
    deadline_ns = now_ns + engine.quick_timeouts_ns[state]
    if sg_unlikely(deadline_ns < flow.deadline_ns):
        flow.deadline_ns = deadline_ns
        bring_deadline_forward(shard, case.found, now_ns)
    flow.deadline_ns = deadline_ns
    counts = &shard.rules[flow.rule]
    counts.packets += 1
    counts.bytes += length
    (<uint32_t *>verdict)[0] = 1 | REASON_ESTABLISHED << 8 | 9 << 24
    verdict.rule = counts.handle
    return True

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
    cdef uint32_t number = record.server & HANDLE_INDEX_MASK, endpoint, ports, turn
    cdef uint64_t *here
    cdef const Server *server
    if sg_unlikely(record.protocol != TCP and record.protocol != UDP):
        return False
    if sg_unlikely(number >= engine.servers_used or <uint8_t>(record.direction - 1) > 1 or sg_half_word(&record.fragment)):
        return False
    server = case.server = &engine.servers[number]
    if sg_unlikely(server.plain_handle != record.server):
        return False
    # Ingress is 1 and comes to the destination, which is the second address, 16 bytes on. Its ports change places, 16 bits.
    turn = (record.direction & 1) << 4
    here = <uint64_t *>(<char *>record.source + turn)
    case.remote = <uint64_t *>(<char *>record.source + (turn ^ 16))
    if sg_likely(record.ip_version == 4 and server.ipv4 == here[1] and not here[0]):
        endpoint = server.ipv4_endpoint
    elif record.ip_version == 6 and server.ipv6[1] == here[1] and server.ipv6[0] == here[0] and server.ipv6_endpoint != NIL:
        endpoint = server.ipv6_endpoint
    else:
        if not server.has_more or (record.ip_version != 4 and record.ip_version != 6):
            return False
        if is_ipv4_pair(here[0], here[1]) != (record.ip_version == 4):
            return False
        endpoint = find_endpoint(engine, server, here[0], here[1], record.ip_version == 4)
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
    cdef Flow *flow
    cdef RuleCounts *counts
    cdef uint64_t deadline_ns
    cdef uint32_t place, state, row = QUICK_UDP
    if sg_unlikely(case.found >= NOWHERE or case.kind != KIND_QUICK):
        return False
    flow = &shard.flows[case.found]
    if sg_unlikely(
        (flow.remote[0] ^ case.remote[0]) | (flow.remote[1] ^ case.remote[1]) | (sg_word(&flow.endpoint) ^ case.ends)
        | <uint64_t>(flow.protocol ^ record.protocol) | <uint64_t>(flow.epoch ^ case.server.epoch)
        | (<uint64_t>(flow.status & (FLAG_REVOKED | FLAG_ANSWERED | FLAG_ODD)) ^ FLAG_ANSWERED)
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
    count_packet(shard, flow, place >> 4, record.length, True)
    deadline_ns = now_ns + engine.quick_timeouts_ns[state]
    if sg_unlikely(deadline_ns < flow.deadline_ns):
        flow.deadline_ns = deadline_ns
        bring_deadline_forward(shard, case.found, now_ns)
    flow.deadline_ns = deadline_ns
    counts = &shard.rules[flow.rule]
    counts.packets += 1
    counts.bytes += record.length
    (<uint32_t *>verdict)[0] = 1 | REASON_ESTABLISHED << 8 | 9 << 24
    verdict.rule = counts.handle
    return True

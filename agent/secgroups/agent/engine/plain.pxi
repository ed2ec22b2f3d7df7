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


cdef inline bint prepare_plain(Engine *engine, Case *case) noexcept nogil:
    """Rows 1 to 6 for an ordinary packet, and its key; False if it may be out of the ordinary."""
    cdef Record *record = <Record *>case.record
    cdef uint32_t number = record.server & HANDLE_INDEX_MASK
    cdef uint64_t *here
    cdef uint64_t *there
    cdef const Server *server
    if sg_unlikely(number >= engine.servers_used):
        return False
    server = case.server = &engine.servers[number]
    if sg_unlikely(server.plain_handle != record.server or not record.server or sg_half_word(&record.fragment)):
        return False
    if sg_unlikely(not record.source_port or not record.destination_port):
        return False
    if record.protocol == TCP:
        if sg_unlikely(engine.segment_of[record.tcp_flags] == SEGMENT_INVALID):
            return False
    elif sg_unlikely(record.protocol != UDP or (record.source_port < 1024 and record.destination_port < 1024)):
        # The ports of DHCP are among those.
        return False
    if record.direction == INGRESS:
        here, there = record.destination, record.source
        case.key.local_port, case.key.remote_port = record.destination_port, record.source_port
    elif sg_likely(record.direction == EGRESS):
        here, there = record.source, record.destination
        case.key.local_port, case.key.remote_port = record.source_port, record.destination_port
    else:
        return False
    if record.ip_version == 4:
        if sg_unlikely((here[0] | there[0]) or <uint32_t>here[1] != 0xFFFF0000u or <uint32_t>there[1] != 0xFFFF0000u):
            return False
        if sg_likely(server.ipv4 == here[1]):
            case.key.endpoint = server.ipv4_endpoint
        else:
            case.key.endpoint = find_endpoint(engine, server, here[0], here[1], True)
    elif sg_likely(record.ip_version == 6 and not is_ipv4_pair(here[0], here[1]) and not is_ipv4_pair(there[0], there[1])):
        case.key.endpoint = find_endpoint(engine, server, here[0], here[1], False)
    else:
        return False
    if sg_unlikely(case.key.endpoint == NIL or not is_plain_source(record.source[0], record.source[1], record.ip_version == 4)):
        return False
    case.key.remote[0], case.key.remote[1] = there[0], there[1]
    case.key.protocol, case.key.opened_by = record.protocol, 0
    case.kind = KIND_PLAIN
    return True


cdef inline bint prepare_quick(Engine *engine, const Shard *shard, Case *case) noexcept nogil:
    """Work out where the flow of a packet would be, if it is one that may go the short way."""
    cdef Record *record = <Record *>case.record
    cdef uint32_t number = record.server & HANDLE_INDEX_MASK, endpoint, ports
    cdef uint64_t *addresses = record.source
    cdef uint64_t *here
    cdef uint64_t *there
    cdef const Server *server
    # The first to say no are the openings of connections.
    if record.protocol == TCP:
        if sg_unlikely(not record.tcp_flags & 0x10):
            return False
    elif sg_unlikely(record.protocol != UDP):
        return False
    if sg_unlikely(number >= engine.servers_used or <uint8_t>(record.direction - 1) > 1 or sg_half_word(&record.fragment)):
        return False
    server = case.server = &engine.servers[number]
    if sg_unlikely(server.plain_handle != record.server or not record.server):
        return False
    # Ingress is 1 and comes to the destination, which is the second address.
    here = addresses + 2 * (record.direction & 1)
    there = addresses + 2 * (~record.direction & 1)
    if sg_likely(record.ip_version == 4):
        if sg_unlikely(server.ipv4 != here[1] or here[0]):
            return False
        endpoint = server.ipv4_endpoint
    elif sg_likely(record.ip_version == 6):
        if sg_unlikely(server.ipv6[1] != here[1] or server.ipv6[0] != here[0] or server.ipv6_endpoint == NIL):
            return False
        endpoint = server.ipv6_endpoint
    else:
        return False
    ports = sg_half_word(&record.source_port)
    if record.direction == INGRESS:
        ports = sg_rotate16(ports)
    case.ends = <uint64_t>ports << 32 | endpoint
    case.hash = hash_parts(shard, there[0], there[1], case.ends, record.protocol)
    case.kind = KIND_QUICK
    return True


cdef inline bint go_on(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, PackedVerdict *verdict) noexcept nogil:
    """Let a packet of an answered flow through, if it moves that along; False if anything else is to be done."""
    cdef Record *record = <Record *>case.record
    cdef uint64_t *there = record.source + 2 * (~record.direction & 1)
    cdef Flow *flow
    cdef RuleCounts *counts
    cdef uint64_t deadline_ns
    cdef uint8_t state = STATE_ANSWERED, kind = 1
    cdef uint32_t by_answerer
    if sg_unlikely(case.found >= NOWHERE):
        return False
    flow = &shard.flows[case.found]
    if sg_unlikely(
        (flow.remote[0] ^ there[0]) | (flow.remote[1] ^ there[1]) | (sg_word(&flow.endpoint) ^ case.ends)
        | <uint64_t>(flow.protocol ^ record.protocol)
    ):
        return False
    if sg_unlikely(
        (flow.status & (FLAG_REVOKED | FLAG_ANSWERED | FLAG_ODD)) ^ FLAG_ANSWERED | (flow.epoch ^ case.server.epoch)
        or flow.deadline_ns <= now_ns
    ):
        return False
    # Both have the direction in one bit: 1 is ingress.
    by_answerer = (record.direction ^ (flow.status >> 4)) & 1
    if record.protocol == TCP:
        state = engine.quick_moves[by_answerer][record.tcp_flags][flow.status & STATE_MASK]
        if sg_unlikely(not state):
            return False
        kind = 0
        flow.status = (flow.status & (0xFF ^ STATE_MASK)) | state
    flow.seen = <uint32_t>(now_ns >> SEEN_SHIFT)
    count_packet(shard, flow, case.found, by_answerer, record.length, True)
    deadline_ns = now_ns + engine.timeouts_ns[kind][state]
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

# The short way for nearly all packets: whole TCP and UDP packets of a server in force, in a flow that is answered and was judged in
# this epoch. Whatever is out of the ordinary goes the long way, from its beginning.

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
        if sg_likely(server.ipv4 == <uint32_t>(here[1] >> 32)):
            case.key.endpoint = server.ipv4_endpoint
        else:
            case.key.endpoint = find_endpoint(engine, server, here[0], here[1], True)
    elif sg_likely(record.ip_version == 6 and not is_ipv4_pair(there[0], there[1])):
        case.key.endpoint = find_endpoint(engine, server, here[0], here[1], False)
    else:
        return False
    if sg_unlikely(case.key.endpoint == NIL or not is_plain_source(record.source[0], record.source[1], record.ip_version == 4)):
        return False
    case.key.remote[0], case.key.remote[1] = there[0], there[1]
    case.key.protocol, case.key.opened_by = record.protocol, 0
    case.kind = KIND_PLAIN
    return True


cdef inline bint go_on(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, PackedVerdict *verdict) noexcept nogil:
    """Let a plain packet of an answered flow through, if it moves that along; False if anything else is to be done."""
    cdef const Record *record = case.record
    cdef Flow *flow
    cdef RuleCounts *counts
    cdef uint64_t deadline_ns
    cdef uint8_t state = STATE_ANSWERED, kind = 1
    cdef bint by_answerer
    if sg_unlikely(case.found == NIL):
        return False
    flow = &shard.flows[case.found]
    if sg_unlikely(
        flow.remote[0] != case.key.remote[0]
        or flow.remote[1] != case.key.remote[1]
        or sg_word(&flow.endpoint) != sg_word(&case.key.endpoint)
        or flow.protocol != record.protocol
        or flow.status & (FLAG_REVOKED | FLAG_ANSWERED) != FLAG_ANSWERED
        or flow.epoch != case.server.epoch
        or flow.deadline_ns <= now_ns
    ):
        return False
    # Both have the direction in one bit: 1 is ingress, 2 egress.
    by_answerer = (record.direction ^ (flow.status >> 4)) & 1
    if record.protocol == TCP:
        state = engine.moves[by_answerer][engine.segment_of[record.tcp_flags] - 1][flow.status & STATE_MASK]
        if sg_unlikely(state >= MOVE_IGNORED or state == STATE_SYN_SENT):
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
    shard.reasons[REASON_ESTABLISHED] += 1
    (<uint32_t *>verdict)[0] = 1 | REASON_ESTABLISHED << 8 | 9 << 24
    verdict.rule = counts.handle
    return True

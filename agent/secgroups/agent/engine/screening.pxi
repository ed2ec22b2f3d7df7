# The first stage of a verdict: rows 1 to 6 of the table, and what to look for after them.

cdef inline bint is_loopback(uint64_t first, uint64_t second, bint ipv4) noexcept nogil:
    if ipv4:
        return ipv4_number(second) >> 24 == 127
    return first == 0 and second == 0x0100000000000000u


cdef inline bint is_unspecified(uint64_t first, uint64_t second, bint ipv4) noexcept nogil:
    return second == 0xFFFF0000u if ipv4 else not first and not second


cdef inline bint is_for_many(uint64_t first, uint64_t second, bint ipv4) noexcept nogil:
    """Whether an address is multicast or broadcast."""
    if ipv4:
        return ipv4_number(second) >> 28 == 14 or ipv4_number(second) == 0xFFFFFFFFu
    return <uint8_t>first == 0xFF


cdef inline bint is_link_local(uint64_t first) noexcept nogil:
    return <uint8_t>first == 0xFE and <uint8_t>(first >> 8) & 0xC0 == 0x80


cdef inline bint has_transport_fault(const Engine *engine, const Case *case, bint ipv4) noexcept nogil:
    cdef const Record *record = case.record
    cdef uint8_t protocol = record.protocol
    if protocol == TCP:
        return not record.source_port or not record.destination_port or engine.segment_of[record.tcp_flags] == SEGMENT_INVALID
    if protocol == UDP or protocol == SCTP:
        return not record.source_port or not record.destination_port
    if protocol == ICMP or protocol == ICMPV6:
        return engine.icmp_kinds[not ipv4][record.icmp_type] & ICMP_IS_ERROR and case.quote == NULL
    return False


cdef inline bint is_rogue_service(const Engine *engine, const Record *record) noexcept nogil:
    if record.direction != EGRESS or record.fragment == FRAGMENT_LATER:
        return False
    if record.protocol == UDP:
        return (record.source_port == 67 and record.destination_port == 68) or (
            record.source_port == 547 and record.destination_port == 546
        )
    return record.protocol == ICMPV6 and engine.icmp_kinds[1][record.icmp_type] & ICMP_IS_ROGUE


cdef inline bint is_essential_service(const Engine *engine, const Case *case, bint ipv4, bint is_own) noexcept nogil:
    """``is_own``: the source is an address of the server."""
    cdef const Record *record = case.record
    cdef bint egress = record.direction == EGRESS
    cdef uint16_t client = 68 if ipv4 else 546, service = 67 if ipv4 else 547
    if record.fragment == FRAGMENT_LATER:
        return False
    if record.protocol == UDP:
        if record.source_port != (client if egress else service) or record.destination_port != (service if egress else client):
            return False
    elif ipv4 or record.protocol != ICMPV6:
        return False
    elif not engine.icmp_kinds[1][record.icmp_type] & (ICMP_IS_ESSENTIAL_OUT if egress else ICMP_IS_ESSENTIAL_IN):
        return False
    if not egress or is_own or is_unspecified(record.source[0], record.source[1], ipv4):
        return True
    return not ipv4 and is_link_local(record.source[0])


cdef inline uint32_t find_endpoint(const Engine *engine, const Server *server, uint64_t first, uint64_t second, bint ipv4) noexcept nogil:
    """Return the endpoint of an address of ``server``, NIL if it is not one."""
    cdef uint32_t number, hashed, at
    cdef const IndexWord *words = engine.endpoint_index.words
    cdef const Endpoint *endpoint
    if ipv4:
        if server.ipv4 == second:
            return server.ipv4_endpoint
    elif server.ipv6_endpoint != NIL and server.ipv6[0] == first and server.ipv6[1] == second:
        return server.ipv6_endpoint
    if not server.has_more:
        return NIL
    number = <uint32_t>(server - engine.servers)
    hashed = mixed(engine, first ^ number, second)
    at = hashed & engine.endpoint_index.mask
    while words[at].number != NIL:
        if words[at].hash == hashed:
            endpoint = &engine.endpoints[words[at].number]
            if endpoint.server == number and endpoint.address[0] == first and endpoint.address[1] == second:
                return words[at].number
        at = (at + 1) & engine.endpoint_index.mask
    return NIL


cdef inline void decided(Case *case, uint8_t reason, uint8_t step) noexcept nogil:
    case.reason, case.step, case.kind = reason, step, KIND_DECIDED


cdef inline bint fill_key(
    const Engine *engine, Key *key, uint8_t protocol, uint8_t direction, bint ipv4,
    uint16_t source_port, uint16_t destination_port, uint8_t icmp_type, uint16_t icmp_id,
) noexcept nogil:
    """Fill in all but addresses; return whether such a packet can be in a flow."""
    cdef uint8_t kind
    key.protocol, key.opened_by = protocol, 0
    if protocol == ICMP or protocol == ICMPV6:
        kind = engine.icmp_kinds[protocol == ICMPV6][icmp_type]
        if not kind & (ICMP_IS_REQUEST | ICMP_IS_REPLY):
            return False
        key.local_port, key.remote_port = icmp_id, engine.icmp_requests[protocol == ICMPV6][icmp_type]
        key.opened_by = direction if kind & ICMP_IS_REQUEST else INGRESS + EGRESS - direction
    elif protocol == TCP or protocol == UDP or protocol == SCTP:
        if direction == EGRESS:
            key.local_port, key.remote_port = source_port, destination_port
        else:
            key.local_port, key.remote_port = destination_port, source_port
    else:
        key.local_port = key.remote_port = 0
    return True


cdef inline void prepare(Engine *engine, Case *case, const Quote *quotes, uint32_t quotes_count) noexcept nogil:
    """Rows 1 to 6, and what to look for after them."""
    cdef const Record *record = case.record
    cdef uint32_t number = record.server & HANDLE_INDEX_MASK, own
    cdef bint ipv4 = record.ip_version == 4, egress = record.direction == EGRESS, special, is_known
    cdef int are_ipv4
    cdef uint64_t here[2]
    cdef Server *server
    case.found = case.flow = NIL
    case.rule = 0
    case.opened = case.is_malformed = 0
    case.quote = &quotes[record.quote - 1] if record.quote and record.quote <= quotes_count else NULL
    # Of one that is not known nothing is looked at but the epoch.
    case.server = <Server *>sg_nothing
    if number >= engine.servers_used:
        decided(case, REASON_UNKNOWN_SERVER, 1)
        return
    case.server = server = &engine.servers[number]
    if server.standing != SERVER_IN_FORCE or server.generation != record.server >> HANDLE_INDEX_BITS:
        is_known = server.standing == SERVER_WITHOUT_RULESET and server.generation == record.server >> HANDLE_INDEX_BITS
        decided(case, REASON_NO_RULESET if is_known else REASON_UNKNOWN_SERVER, 2 if is_known else 1)
        return
    are_ipv4 = is_ipv4_pair(record.source[0], record.source[1]) + is_ipv4_pair(record.destination[0], record.destination[1])
    if (
        (record.ip_version != 4 and record.ip_version != 6)
        or (ipv4 and are_ipv4 != 2)
        or (record.direction != INGRESS and not egress)
        or record.fragment > FRAGMENT_LATER
        or record.reserved[0] or record.reserved[1] or record.reserved[2]
    ):
        case.is_malformed = 1
        decided(case, REASON_INVALID_PACKET, 3)
        return
    if (
        (are_ipv4 and not ipv4)
        or record.protocol == (ICMPV6 if ipv4 else ICMP)
        or (record.fragment != FRAGMENT_LATER and has_transport_fault(engine, case, ipv4))
    ):
        decided(case, REASON_INVALID_PACKET, 3)
        return
    if egress:
        here[0], here[1] = record.source[0], record.source[1]
        case.key.remote[0], case.key.remote[1] = record.destination[0], record.destination[1]
    else:
        here[0], here[1] = record.destination[0], record.destination[1]
        case.key.remote[0], case.key.remote[1] = record.source[0], record.source[1]
    case.key.endpoint = own = find_endpoint(engine, server, here[0], here[1], ipv4)
    special = record.protocol == UDP or record.protocol == ICMPV6
    if special and is_rogue_service(engine, record):
        decided(case, REASON_ROGUE_SERVICE, 4)
        return
    if special and engine.essential_services and is_essential_service(engine, case, ipv4, own != NIL):
        decided(case, REASON_ESSENTIAL, 4)
        return
    if (
        is_loopback(record.source[0], record.source[1], ipv4)
        or is_unspecified(record.source[0], record.source[1], ipv4)
        or is_for_many(record.source[0], record.source[1], ipv4)
    ):
        decided(case, REASON_INVALID_PACKET, 3)
        return
    if own == NIL and egress:
        decided(case, REASON_SPOOFED_SOURCE, 5)
        return
    if own == NIL and not is_for_many(record.destination[0], record.destination[1], ipv4):
        decided(case, REASON_NOT_LOCAL, 6)
        return
    if record.fragment == FRAGMENT_LATER:
        case.kind = KIND_LATER
        return
    if (record.protocol == ICMP or record.protocol == ICMPV6) and engine.icmp_kinds[not ipv4][record.icmp_type] & ICMP_IS_ERROR:
        case.kind = KIND_ERROR
        return
    case.kind = KIND_KEYLESS
    if fill_key(
        engine, &case.key, record.protocol, record.direction, ipv4,
        record.source_port, record.destination_port, record.icmp_type, record.icmp_id,
    ):
        case.kind = KIND_KEYED

# The verdict table, row by row, in three stages so that a batch can wait for memory once for all of its packets: prepare (rows 1 to 6
# and what to look for), locate (the index), conclude (rows 7 to 13). ``commit`` is false for Explain: then nothing is written.

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


cdef inline Opening opening_of(const Engine *engine, const Case *case) noexcept nogil:
    cdef const Record *record = case.record
    cdef Opening opening
    opening.remote[0], opening.remote[1] = case.key.remote[0], case.key.remote[1]
    opening.protocol, opening.direction, opening.is_ipv4 = record.protocol, record.direction, record.ip_version == 4
    if record.protocol == ICMP or record.protocol == ICMPV6:
        opening.port = <uint16_t>(record.icmp_type << 8 | record.icmp_code)
    elif record.protocol == TCP or record.protocol == UDP or record.protocol == SCTP:
        opening.port = record.destination_port
    else:
        opening.port = 0
    return opening


cdef inline Opening opening_of_flow(const Flow *flow) noexcept nogil:
    cdef Opening opening
    opening.remote[0], opening.remote[1] = flow.remote[0], flow.remote[1]
    opening.protocol, opening.direction = flow.protocol, INGRESS if flow.status & FLAG_INGRESS else EGRESS
    opening.is_ipv4 = is_ipv4_pair(flow.remote[0], flow.remote[1])
    if flow.protocol == ICMP or flow.protocol == ICMPV6:
        opening.port = <uint16_t>(flow.remote_port << 8 | flow.icmp_code)
    else:
        opening.port = flow.local_port if opening.direction == INGRESS else flow.remote_port
    return opening


cdef inline void renew(Engine *engine, Shard *shard, Flow *flow, uint32_t place, uint64_t now_ns, bint commit) noexcept nogil:
    """Put the whole time-out of its state before the flow."""
    cdef uint8_t kind = engine.protocol_class[flow.protocol]
    cdef uint64_t before = flow.deadline_ns
    if flow.status & FLAG_REVOKED:
        flow.deadline_ns = now_ns + engine.revoked_ns[kind]
    else:
        flow.deadline_ns = now_ns + engine.timeouts_ns[kind][flow.status & STATE_MASK]
    if commit and sg_unlikely(flow.deadline_ns < before):
        bring_deadline_forward(shard, place, now_ns)


cdef inline void name_rule(Shard *shard, Flow *flow, uint32_t rule, bint commit) noexcept nogil:
    if commit and flow.rule != rule:
        shard.rules[flow.rule].users -= 1
        shard.rules[rule].users += 1
    flow.rule = rule


cdef void bring_up(
    Engine *engine, Shard *shard, const Server *server, Flow *flow, uint32_t place, uint64_t now_ns, bint commit
) noexcept nogil:
    """Judge a flow again in the epoch of now, by the packet that opened it; the epoch comes last, as it says that this was done."""
    cdef Opening opening = opening_of_flow(flow)
    cdef uint32_t rule = find_rule(engine, server.policy, &opening)
    cdef bint was_revoked = (flow.status & FLAG_REVOKED) != 0
    if rule:
        flow.status &= 0xFF ^ FLAG_REVOKED
        name_rule(shard, flow, rule, commit)
    else:
        flow.status |= FLAG_REVOKED
    if was_revoked != (rule == 0):
        renew(engine, shard, flow, place, now_ns, commit)
    sg_write_barrier()
    flow.epoch = server.epoch


cdef inline void count_in_flow(
    Engine *engine, Shard *shard, const Case *case, Flow *flow, uint32_t place, bint by_answerer, uint64_t now_ns, bint commit
) noexcept nogil:
    """A packet of the flow was let through: it is seen and counted, and perhaps answered by it; its deadline is as it was."""
    flow.seen = <uint32_t>(now_ns >> SEEN_SHIFT)
    count_packet(shard, flow, place, by_answerer, case.record.length, commit)
    if sg_likely(flow.status & FLAG_ANSWERED):
        return
    if not has_packets(shard, flow, place, 0) or not has_packets(shard, flow, place, 1):
        return
    if flow.protocol == TCP and not (engine.connected >> (flow.status & STATE_MASK)) & 1:
        return
    if commit:
        leave_line(shard, case.server, place)
    if flow.protocol != TCP:
        flow.status = (flow.status & (0xFF ^ STATE_MASK)) | STATE_ANSWERED
    flow.status |= FLAG_ANSWERED
    if commit:
        stand_in_line(shard, case.server, place)


cdef inline void by_flow(Case *case, const Flow *flow, uint8_t reason, uint8_t step) noexcept nogil:
    case.reason, case.step, case.rule = reason, step, flow.rule


cdef inline bint is_odd(const Flow *flow) noexcept nogil:
    """Whether packets of a flow have to be looked at before the table."""
    if not is_plain_source(flow.remote[0], flow.remote[1], is_ipv4_pair(flow.remote[0], flow.remote[1])):
        return True
    # The ports of DHCP are among those.
    return flow.protocol == UDP and flow.local_port < 1024 and flow.remote_port < 1024


cdef void open_at(
    Engine *engine, Shard *shard, const Case *case, uint32_t place, const Opening *opening, uint32_t rule, uint64_t now_ns
) noexcept nogil:
    """Write a flow that ``case`` opens into an entry that is linked and indexed or about to be; meanwhile it looks free."""
    cdef Flow *flow = &shard.flows[place]
    cdef uint8_t status = FLAG_INGRESS if opening.direction == INGRESS else 0
    cdef bint by_answerer = opening.direction != case.record.direction
    flow.status = 0
    sg_write_barrier()
    flow.remote[0], flow.remote[1] = case.key.remote[0], case.key.remote[1]
    flow.endpoint, flow.local_port, flow.remote_port = case.key.endpoint, case.key.local_port, case.key.remote_port
    flow.protocol, flow.icmp_code = case.key.protocol, case.record.icmp_code
    flow.epoch, flow.rule = case.server.epoch, rule
    flow.seen = <uint32_t>(now_ns >> SEEN_SHIFT)
    shard.opened[place] = <uint32_t>(now_ns >> OPENED_SHIFT)
    memset(&shard.highs[place], 0, sizeof(Highs))
    flow.packets[0] = flow.packets[1] = flow.bytes[0] = flow.bytes[1] = 0
    flow.packets[by_answerer], flow.bytes[by_answerer] = 1, case.record.length
    if flow.protocol != TCP:
        status |= STATE_UNANSWERED
    elif engine.segment_of[case.record.tcp_flags] == SEGMENT_SYN:
        status |= STATE_SYN_SENT
    else:
        status |= STATE_ESTABLISHED
    flow.deadline_ns = now_ns + engine.timeouts_ns[engine.protocol_class[flow.protocol]][status & STATE_MASK]
    shard.rules[rule].users += 1
    if is_odd(flow):
        status |= FLAG_ODD
    sg_write_barrier()
    flow.status = status


cdef void opened_by_rule(
    Engine *engine, Shard *shard, Case *case, const Opening *opening, uint32_t rule, uint64_t now_ns, bint commit
) noexcept nogil:
    """Rows 12 and 13 for a packet that ``rule`` allows."""
    cdef bint ipv4 = case.record.ip_version == 4
    cdef uint32_t server, place
    case.reason, case.step = REASON_NEW, 13
    if case.kind != KIND_KEYED or is_for_many(case.record.destination[0], case.record.destination[1], ipv4):
        case.rule = rule
        return
    server = <uint32_t>(case.server - engine.servers)
    if not find_room(engine, shard, server, now_ns, commit):
        case.reason, case.step = REASON_TABLE_FULL, 12
        return
    case.rule, case.opened = rule, 1
    if not commit:
        return
    # An entry that is over may still hold the key.
    place = find_entry(shard, &case.key, case.hash)
    if place != NIL:
        release_entry(engine, shard, place)
    place = take_entry(shard)
    open_at(engine, shard, case, place, opening, rule, now_ns)
    link_into_wheel(shard, place, shard.flows[place].deadline_ns, now_ns)
    stand_in_line(shard, case.server, place)
    put_in_index(shard, place, case.hash)
    engine.endpoints[case.key.endpoint].flows += 1
    case.server.flows += 1
    shard.count += 1
    case.flow = place


cdef void reopen(
    Engine *engine, Shard *shard, Case *case, Flow *flow, uint32_t place, uint64_t now_ns, bint commit
) noexcept nogil:
    """Rows 11 and 13 for a SYN that finds a flow past its life."""
    cdef Opening opening = opening_of(engine, case)
    cdef uint32_t rule = find_rule(engine, case.server.policy, &opening)
    if not rule:
        case.reason, case.step, case.rule = REASON_NO_RULE, 11, 0
        if flow.status & FLAG_REVOKED:
            renew(engine, shard, flow, place, now_ns, commit)
        return
    case.reason, case.step, case.rule, case.opened = REASON_NEW, 13, rule, 1
    if not commit:
        return
    shard.rules[flow.rule].users -= 1
    leave_line(shard, case.server, place)
    open_at(engine, shard, case, place, &opening, rule, now_ns)
    unlink_from_wheel(shard, place)
    link_into_wheel(shard, place, flow.deadline_ns, now_ns)
    stand_in_line(shard, case.server, place)


cdef inline void judge_by_flow(
    Engine *engine, Shard *shard, Case *case, Flow *flow, uint32_t place, uint64_t now_ns, bint commit
) noexcept nogil:
    """Row 9."""
    cdef const Record *record = case.record
    cdef bint by_answerer = (record.direction == INGRESS) != ((flow.status & FLAG_INGRESS) != 0)
    cdef uint8_t segment, move
    cdef bint opener_syn = False
    if record.protocol == TCP:
        segment = engine.segment_of[record.tcp_flags]
        opener_syn = segment == SEGMENT_SYN and not by_answerer
    if sg_unlikely(flow.status & FLAG_REVOKED and opener_syn):
        reopen(engine, shard, case, flow, place, now_ns, commit)
        return
    if sg_unlikely(flow.epoch != case.server.epoch):
        bring_up(engine, shard, case.server, flow, place, now_ns, commit)
    if sg_unlikely(flow.status & FLAG_REVOKED):
        if opener_syn:
            reopen(engine, shard, case, flow, place, now_ns, commit)
            return
        by_flow(case, flow, REASON_REVOKED, 9)
        if not by_answerer:
            renew(engine, shard, flow, place, now_ns, commit)
        return
    by_flow(case, flow, REASON_ESTABLISHED, 9)
    if record.protocol != TCP:
        count_in_flow(engine, shard, case, flow, place, by_answerer, now_ns, commit)
        renew(engine, shard, flow, place, now_ns, commit)
        return
    if segment == SEGMENT_SYN and (engine.reopenable >> (flow.status & STATE_MASK)) & 1:
        reopen(engine, shard, case, flow, place, now_ns, commit)
        return
    move = engine.moves[by_answerer][segment - 1][flow.status & STATE_MASK]
    if sg_unlikely(move == MOVE_INVALID):
        case.reason, case.step, case.rule = REASON_INVALID_STATE, 9, 0
        return
    if sg_unlikely(move == MOVE_IGNORED):
        count_in_flow(engine, shard, case, flow, place, by_answerer, now_ns, commit)
        return
    flow.status = (flow.status & (0xFF ^ STATE_MASK)) | move
    count_in_flow(engine, shard, case, flow, place, by_answerer, now_ns, commit)
    renew(engine, shard, flow, place, now_ns, commit)


cdef void judge_by_rules(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, bint commit) noexcept nogil:
    """Rows 10 to 13."""
    cdef const Record *record = case.record
    cdef Opening opening = opening_of(engine, case), answered
    cdef uint32_t rule
    cdef uint8_t segment
    if record.protocol == TCP:
        segment = engine.segment_of[record.tcp_flags]
        if segment != SEGMENT_SYN:
            if now_ns < engine.loose_until_ns and segment == SEGMENT_ACK:
                rule = find_rule(engine, case.server.policy, &opening)
                if rule:
                    opened_by_rule(engine, shard, case, &opening, rule, now_ns, commit)
                    return
                answered = opening
                answered.direction = INGRESS + EGRESS - record.direction
                answered.port = record.source_port
                rule = find_rule(engine, case.server.policy, &answered)
                if rule:
                    opened_by_rule(engine, shard, case, &answered, rule, now_ns, commit)
                    return
            case.reason, case.step = REASON_INVALID_STATE, 10
            return
    elif record.protocol == ICMP or record.protocol == ICMPV6:
        if engine.icmp_kinds[record.protocol == ICMPV6][record.icmp_type] & ICMP_IS_REPLY:
            case.reason, case.step = REASON_INVALID_STATE, 10
            return
    rule = find_rule(engine, case.server.policy, &opening)
    if rule:
        opened_by_rule(engine, shard, case, &opening, rule, now_ns, commit)
    else:
        case.reason, case.step = REASON_NO_RULE, 11


cdef uint32_t find_quoted(Engine *engine, Shard *shard, const Case *case, uint64_t now_ns) noexcept nogil:
    """Return the live flow in which the receiver of this error sent what it quotes, NIL if there is none."""
    cdef const Record *record = case.record
    cdef const Quote *quote = case.quote
    cdef uint8_t direction = INGRESS + EGRESS - record.direction
    cdef bint ipv4 = record.ip_version == 4
    cdef const Flow *flow
    cdef Key key
    cdef uint32_t place
    if quote.ip_version != record.ip_version or is_ipv4_pair(quote.destination[0], quote.destination[1]) != ipv4:
        return NIL
    if quote.reserved or quote.reserved_too[0] or quote.reserved_too[1] or quote.reserved_too[2]:
        return NIL
    if quote.reserved_too[3] or quote.reserved_too[4] or quote.reserved_too[5]:
        return NIL
    if quote.source[0] != record.destination[0] or quote.source[1] != record.destination[1]:
        return NIL
    if direction == EGRESS:
        key.remote[0], key.remote[1] = quote.destination[0], quote.destination[1]
        key.endpoint = case.key.endpoint
    else:
        key.remote[0], key.remote[1] = quote.source[0], quote.source[1]
        key.endpoint = find_endpoint(engine, case.server, quote.destination[0], quote.destination[1], ipv4)
    if key.endpoint == NIL or not fill_key(
        engine, &key, quote.protocol, direction, ipv4, quote.source_port, quote.destination_port, quote.icmp_type, quote.icmp_id
    ):
        return NIL
    place = find_entry(shard, &key, hash_of(shard, &key))
    if place == NIL or shard.flows[place].deadline_ns <= now_ns:
        return NIL
    flow = &shard.flows[place]
    if not has_packets(shard, flow, place, (direction == INGRESS) != ((flow.status & FLAG_INGRESS) != 0)):
        return NIL
    return place


cdef void judge_error(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, bint commit) noexcept nogil:
    """Row 8; an ICMP error has no reply and so is in no flow itself."""
    cdef uint32_t place = find_quoted(engine, shard, case, now_ns)
    cdef Flow copy
    cdef Flow *flow
    if place != NIL:
        flow = &shard.flows[place]
        if not commit:
            copy = flow[0]
            flow = &copy
        if flow.epoch != case.server.epoch:
            bring_up(engine, shard, case.server, flow, place, now_ns, commit)
        if not flow.status & FLAG_REVOKED:
            by_flow(case, flow, REASON_RELATED, 8)
            case.flow = place
            return
    judge_by_rules(engine, shard, case, now_ns, commit)


cdef void judge_later_fragment(Shard *shard, Case *case, uint64_t now_ns) noexcept nogil:
    """Row 7."""
    cdef uint32_t place = find_first_fragment(shard, case.record)
    cdef FirstFragment *held
    case.reason, case.step = REASON_UNKNOWN_FRAGMENT, 7
    if place == NIL:
        return
    held = &shard.fragments[place]
    if held.epoch == case.server.epoch and now_ns < held.deadline_ns:
        case.reason, case.rule = held.reason, held.rule


cdef inline void conclude(Engine *engine, Shard *shard, Case *case, uint64_t now_ns, Flow *copy) noexcept nogil:
    """Rows 7 to 13. With ``copy`` nothing is committed, and the flow concerned is written there as it would be then."""
    cdef uint32_t place = case.found
    cdef bint commit = copy == NULL
    cdef Flow *flow
    if case.kind == KIND_KEYED:
        if place == NOWHERE:
            place = NIL
        elif place == NIL or not shard.flows[place].status or not is_flow_of(&shard.flows[place], &case.key):
            place = find_entry(shard, &case.key, case.hash)
        if place != NIL and shard.flows[place].deadline_ns > now_ns:
            case.flow = place
            flow = &shard.flows[place]
            if not commit:
                copy[0] = flow[0]
                flow = copy
            judge_by_flow(engine, shard, case, flow, place, now_ns, commit)
            return
        judge_by_rules(engine, shard, case, now_ns, commit)
    elif case.kind == KIND_KEYLESS:
        judge_by_rules(engine, shard, case, now_ns, commit)
    elif case.kind == KIND_LATER:
        judge_later_fragment(shard, case, now_ns)
    else:
        judge_error(engine, shard, case, now_ns, commit)


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
    """Make of a plain packet what ``prepare`` would."""
    case.kind = KIND_KEYED
    case.flow = NIL
    case.rule = 0
    case.opened = case.is_malformed = 0
    case.quote = NULL


cdef void decide_batch(
    Engine *engine, Shard *shard, Case *cases, uint32_t count, const Quote *quotes, uint32_t quotes_count,
    uint64_t now_ns, const uint64_t *times, PackedVerdict **verdicts,
) noexcept nogil:
    """Judge ``count`` packets, at most BATCH, of servers of this shard, which is locked; each at its own of ``times``, if given."""
    cdef uint32_t at, established = 0, indexed = shard.indexed, guessed
    cdef Case *case
    for at in range(count):
        case = &cases[at]
        if sg_unlikely(not prepare_quick(engine, shard, case)):
            if sg_unlikely(not prepare_plain(engine, case)):
                prepare(engine, case, quotes, quotes_count)
                if case.kind != KIND_KEYED:
                    continue
            prefetch_root(engine, &case.key)
            case.hash = hash_of(shard, &case.key)
        sg_prefetch(shard.index + <size_t>chunk_of(shard, case.hash) * CHUNK_WORDS)
    for at in range(count):
        case = &cases[at]
        if sg_likely(case.kind >= KIND_KEYED):
            case.found = first_guess(shard, case.hash)
            if sg_likely(case.found < NOWHERE):
                sg_prefetch(&shard.flows[case.found])
            elif case.kind == KIND_PLAIN:
                prefetch_bundles(engine, case.server.policy, &case.key, case.record.direction)
    for at in range(count):
        case = &cases[at]
        if times != NULL:
            now_ns = times[at]
        if sg_likely(case.kind == KIND_QUICK):
            if sg_likely(go_on(engine, shard, case, now_ns, verdicts[at])):
                established += 1
                if sg_unlikely(engine.taps_open):
                    case.reason, case.quote = REASON_ESTABLISHED, NULL
                    offer(engine, case, verdicts[at], now_ns)
                continue
            guessed = case.found
            if not prepare_plain(engine, case):
                prepare(engine, case, quotes, quotes_count)
                case.found = guessed
        if case.kind == KIND_PLAIN:
            begin_long_way(case)
        if case.found == NOWHERE and shard.indexed != indexed:
            # A packet before this one may have opened it.
            case.found = NIL
        if case.kind != KIND_DECIDED:
            conclude(engine, shard, case, now_ns, NULL)
        finish(shard, case, now_ns)
        write_verdict(shard, case, verdicts[at])
        if sg_unlikely(engine.taps_open):
            offer(engine, case, verdicts[at], now_ns)
    shard.reasons[REASON_ESTABLISHED] += established

# The verdict table, row by row, in three stages so that a batch can wait for memory once for all of its packets: prepare (rows 1 to 6
# and what to look for), locate (the index), conclude (rows 7 to 13). ``commit`` is false for Explain: then nothing is written.

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
    count_packet(shard, flow, by_answerer, case.record.length, commit)
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
    # An entry that is over may still hold the key, if it has not made room.
    place = case.found
    if place != NIL and shard.flows[place].status and is_flow_of(&shard.flows[place], &case.key):
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
        case.found = place
        judge_by_rules(engine, shard, case, now_ns, commit)
    elif case.kind == KIND_KEYLESS:
        judge_by_rules(engine, shard, case, now_ns, commit)
    elif case.kind == KIND_LATER:
        judge_later_fragment(shard, case, now_ns)
    else:
        judge_error(engine, shard, case, now_ns, commit)

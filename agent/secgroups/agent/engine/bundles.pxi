# The rules of one policy, direction and label: for each protocol, ranges of ports with the lowest rule of each.

cdef inline uint32_t find_in(const Ranges *ranges, uint16_t port) noexcept nogil:
    """Return the rule of the range that ``port`` is in, 0 if it is in none."""
    cdef uint32_t low = 0, high = ranges.count, middle
    cdef const Range *held = ranges.held
    if not high:
        return 0
    while high - low > 1:
        middle = (low + high) >> 1
        if held[middle].first <= port:
            low = middle
        else:
            high = middle
    return held[low].rule if held[low].first <= port <= held[low].last else 0


cdef inline void consider(const Engine *engine, const Bundle *bundle, const Opening *opening, uint32_t *best) noexcept nogil:
    cdef uint32_t found = bundle.any_protocol, special = 0, at
    if opening.protocol == TCP:
        special = find_in(&bundle.tcp, opening.port)
    elif opening.protocol == UDP:
        special = find_in(&bundle.udp, opening.port)
    elif opening.protocol == ICMP or opening.protocol == ICMPV6:
        special = find_in(&bundle.icmp, opening.port)
    else:
        for at in range(bundle.others_count):
            if bundle.others[at].protocol == opening.protocol:
                special = find_in(&bundle.others[at].ranges, opening.port)
    if special and (not found or engine.rules[special].rank < engine.rules[found].rank):
        found = special
    if found and (not best[0] or engine.rules[found].rank < engine.rules[best[0]].rank):
        best[0] = found


cdef inline uint64_t bundle_key(uint32_t policy, uint32_t direction, uint32_t label) noexcept nogil:
    return (<uint64_t>policy << 33) | (<uint64_t>(direction - 1) << 32) | label


cdef inline uint32_t find_bundle(const Engine *engine, uint64_t key) noexcept nogil:
    cdef uint32_t hashed = mixed(engine, key, 1), at = hashed & engine.bundle_index.mask
    cdef const IndexWord *words = engine.bundle_index.words
    while words[at].number != NIL:
        if words[at].hash == hashed and engine.bundles[words[at].number].key == key:
            return words[at].number
        at = (at + 1) & engine.bundle_index.mask
    return NIL


cdef inline bint is_in_hull(const Hull *hull, const Opening *opening) noexcept nogil:
    if opening.protocol == TCP:
        return hull.tcp_first <= opening.port <= hull.tcp_last
    if opening.protocol == UDP:
        return hull.udp_first <= opening.port <= hull.udp_last
    return True


cdef inline uint32_t find_bundle_for(const Engine *engine, uint64_t key, const Opening *opening) noexcept nogil:
    """The same, but NIL also for a bundle outside whose hull ``opening`` is."""
    cdef uint32_t hashed = mixed(engine, key, 1), at = hashed & engine.bundle_index.mask
    cdef const IndexWord *words = engine.bundle_index.words
    if not may_have(&engine.bundle_index, hashed):
        return NIL
    while words[at].number != NIL:
        if words[at].hash == hashed and is_in_hull(&words[at].hull, opening) and engine.bundles[words[at].number].key == key:
            return words[at].number
        at = (at + 1) & engine.bundle_index.mask
    return NIL


cdef inline Hull hull_of(const Bundle *bundle) noexcept nogil:
    cdef Hull hull
    hull.tcp_first = hull.udp_first = 0xFFFF
    hull.tcp_last = hull.udp_last = 0
    if bundle.tcp.count:
        hull.tcp_first, hull.tcp_last = bundle.tcp.held[0].first, bundle.tcp.held[bundle.tcp.count - 1].last
    if bundle.udp.count:
        hull.udp_first, hull.udp_last = bundle.udp.held[0].first, bundle.udp.held[bundle.udp.count - 1].last
    if bundle.any_protocol:
        hull.tcp_first = hull.udp_first = 0
        hull.tcp_last = hull.udp_last = 0xFFFF
    return hull


cdef void note_hull(Engine *engine, uint32_t number) noexcept nogil:
    """Write the hull of a bundle, whose ranges are as they are to be, where the bundle is found."""
    cdef uint64_t key = engine.bundles[number].key
    cdef uint32_t at = mixed(engine, key, 1) & engine.bundle_index.mask, label = <uint32_t>key
    cdef IndexWord *words = engine.bundle_index.words
    while words[at].number != number:
        at = (at + 1) & engine.bundle_index.mask
    words[at].hull = hull_of(&engine.bundles[number])
    if label <= WHOLE_LABELS:
        engine.policies[key >> 33].sides[(key >> 32) & 1].hulls[label - 1] = words[at].hull


cdef int append_range(Ranges *made, uint32_t first, uint32_t last, uint32_t rule) except -1:
    cdef Range *grown
    cdef uint32_t room
    if made.count and made.held[made.count - 1].rule == rule and made.held[made.count - 1].last + 1 == first:
        made.held[made.count - 1].last = <uint16_t>last
        return 0
    if made.count == made.room:
        room = made.room * 2 if made.room else 2
        grown = <Range *>realloc(made.held, room * sizeof(Range))
        if grown == NULL:
            raise MemoryError
        made.held, made.room = grown, room
    made.held[made.count].first, made.held[made.count].last = <uint16_t>first, <uint16_t>last
    made.held[made.count].rule = rule
    made.count += 1
    return 0


ctypedef struct Ranked:
    uint64_t rank
    uint32_t rule
    uint32_t first
    uint32_t last


cdef int by_rank(const void *a, const void *b) noexcept nogil:
    cdef uint64_t left = (<const Ranked *>a).rank, right = (<const Ranked *>b).rank
    return (left > right) - (left < right)


cdef int append_lowest(Ranges *made, Ranked *rules, uint32_t count, uint32_t first, uint32_t last) except -1:
    """Append, for each port within ``first`` to ``last``, the lowest of the rules that cover it: each paints what no lower one has."""
    cdef uint32_t width = last - first + 1, at, port, end
    # next_bare[p] leads to the first port from p on that has no colour yet.
    cdef uint32_t *colour = <uint32_t *>calloc(width, sizeof(uint32_t))
    cdef uint32_t *next_bare = <uint32_t *>malloc((<size_t>width + 1) * sizeof(uint32_t))
    if colour == NULL or next_bare == NULL:
        free(colour)
        free(next_bare)
        raise MemoryError
    try:
        for at in range(width + 1):
            next_bare[at] = at
        qsort(rules, count, sizeof(Ranked), by_rank)
        for at in range(count):
            port, end = rules[at].first - first, rules[at].last - first
            while True:
                while next_bare[port] != port:
                    next_bare[port] = next_bare[next_bare[port]]
                    port = next_bare[port]
                if port > end:
                    break
                colour[port] = rules[at].rule
                next_bare[port] = port + 1
        port = 0
        while port < width:
            end = port
            while end + 1 < width and colour[end + 1] == colour[port]:
                end += 1
            if colour[port]:
                append_range(made, first + port, first + end, colour[port])
            port = end + 1
    finally:
        free(colour)
        free(next_bare)
    return 0


cdef int append_lowest_of_few(Ranges *made, Ranked *rules, uint32_t count, uint32_t first, uint32_t last) except -1:
    """The same for a handful of rules, without an array of all ports."""
    cdef uint32_t port = first, end, at
    cdef Ranked *lowest
    while port <= last:
        lowest, end = NULL, last
        for at in range(count):
            if rules[at].first > port:
                end = min(end, rules[at].first - 1)
            elif rules[at].last >= port:
                end = min(end, rules[at].last)
                if lowest == NULL or rules[at].rank < lowest.rank:
                    lowest = &rules[at]
        if lowest != NULL:
            append_range(made, port, end, lowest.rule)
        port = end + 1
    return 0


cdef int remake_ranges(Engine *engine, Bundle *bundle, Ranges *ranges, uint32_t protocol, uint32_t first, uint32_t last) except -1:
    """Work out ``first`` to ``last`` of the ranges of a protocol anew from the bundle's rules; the rest stays as it is."""
    cdef Ranges made
    cdef Ranked *rules = <Ranked *>malloc((<size_t>bundle.rules_count + 1) * sizeof(Ranked))
    cdef uint32_t at, count = 0
    cdef Rule *rule
    memset(&made, 0, sizeof(made))
    if rules == NULL:
        raise MemoryError
    try:
        for at in range(bundle.rules_count):
            rule = &engine.rules[bundle.rules[at]]
            if rule.protocol == protocol and rule.first <= last and rule.last >= first:
                rules[count].rank, rules[count].rule = rule.rank, bundle.rules[at]
                rules[count].first, rules[count].last = max(first, rule.first), min(last, rule.last)
                count += 1
        for at in range(ranges.count):
            if ranges.held[at].first >= first:
                break
            append_range(&made, ranges.held[at].first, min(<uint32_t>ranges.held[at].last, first - 1), ranges.held[at].rule)
        if count <= 24:
            append_lowest_of_few(&made, rules, count, first, last)
        else:
            append_lowest(&made, rules, count, first, last)
        for at in range(ranges.count):
            if ranges.held[at].last > last:
                append_range(&made, max(<uint32_t>ranges.held[at].first, last + 1), ranges.held[at].last, ranges.held[at].rule)
    except MemoryError:
        free(made.held)
        raise
    finally:
        free(rules)
    free(ranges.held)
    ranges[0] = made
    return 0


cdef int remake(Engine *engine, uint32_t number, const Rule *changed) except -1:
    """Bring a bundle in line with its rules after ``changed`` has come or gone."""
    remake_part(engine, &engine.bundles[number], changed)
    note_hull(engine, number)
    return 0


cdef int remake_part(Engine *engine, Bundle *bundle, const Rule *changed) except -1:
    cdef uint32_t at
    cdef Other *grown
    if changed.protocol == ANY_PROTOCOL:
        bundle.any_protocol = 0
        for at in range(bundle.rules_count):
            if engine.rules[bundle.rules[at]].protocol != ANY_PROTOCOL:
                continue
            if not bundle.any_protocol or engine.rules[bundle.rules[at]].rank < engine.rules[bundle.any_protocol].rank:
                bundle.any_protocol = bundle.rules[at]
        return 0
    if changed.protocol == TCP:
        return remake_ranges(engine, bundle, &bundle.tcp, TCP, changed.first, changed.last)
    if changed.protocol == UDP:
        return remake_ranges(engine, bundle, &bundle.udp, UDP, changed.first, changed.last)
    if changed.protocol == ICMP:
        return remake_ranges(engine, bundle, &bundle.icmp, ICMP, changed.first, changed.last)
    for at in range(bundle.others_count):
        if bundle.others[at].protocol == changed.protocol:
            return remake_ranges(engine, bundle, &bundle.others[at].ranges, changed.protocol, changed.first, changed.last)
    grown = <Other *>realloc(bundle.others, (<size_t>bundle.others_count + 1) * sizeof(Other))
    if grown == NULL:
        raise MemoryError
    bundle.others = grown
    memset(&grown[bundle.others_count], 0, sizeof(Other))
    grown[bundle.others_count].protocol = changed.protocol
    bundle.others_count += 1
    return remake_ranges(engine, bundle, &grown[bundle.others_count - 1].ranges, changed.protocol, changed.first, changed.last)


cdef inline Side *side_of(Engine *engine, uint32_t policy, const Rule *rule) noexcept nogil:
    return &engine.policies[policy].sides[rule.direction - 1]


cdef void note_bundle(Side *side, const Rule *rule, uint32_t at) noexcept nogil:
    """Have a policy know that the bundle of a rule's label has come, or gone if ``at`` is NIL."""
    cdef int change = 1 if at != NIL else -1
    if rule.label <= WHOLE_LABELS:
        side.whole[rule.label - 1] = at
    elif rule.label & 1:
        side.groups += change
    else:
        side.networks += change


cdef uint32_t put_in_bundle(Engine *engine, uint32_t policy, uint32_t number) except? 0xFFFFFFFF:
    """Append a rule to the bundle that it belongs to, which is made if need be; return that. ``remake`` has to follow."""
    cdef Rule *rule = &engine.rules[number]
    cdef uint64_t key = bundle_key(policy, rule.direction, rule.label)
    cdef uint32_t at = find_bundle(engine, key), room
    cdef uint32_t *grown
    cdef Bundle *bundle
    if at == NIL:
        at = take_item(&engine.bundle_pool)
        engine.bundles = <Bundle *>engine.bundle_pool.items
        engine.bundles[at].key = key
        put_into(&engine.bundle_index, mixed(engine, key, 1), at)
        note_bundle(side_of(engine, policy, rule), rule, at)
    bundle = &engine.bundles[at]
    if bundle.rules_count == bundle.rules_room:
        room = bundle.rules_room * 2 if bundle.rules_room else 2
        grown = <uint32_t *>realloc(bundle.rules, <size_t>room * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        bundle.rules, bundle.rules_room = grown, room
    bundle.rules[bundle.rules_count] = number
    bundle.rules_count += 1
    return at


cdef void free_bundle(Engine *engine, uint32_t number) noexcept:
    cdef Bundle *bundle = &engine.bundles[number]
    cdef uint32_t at
    for at in range(bundle.others_count):
        free(bundle.others[at].ranges.held)
    free(bundle.others)
    free(bundle.tcp.held)
    free(bundle.udp.held)
    free(bundle.icmp.held)
    free(bundle.rules)
    take_from(&engine.bundle_index, mixed(engine, bundle.key, 1), number)
    give_item(&engine.bundle_pool, number)


cdef void drop_bundle(Engine *engine, uint32_t policy, uint32_t at, const Rule *rule) noexcept:
    note_bundle(side_of(engine, policy, rule), rule, NIL)
    free_bundle(engine, at)


cdef uint32_t take_from_bundle(Engine *engine, uint32_t policy, uint32_t number) noexcept:
    """Take a rule out of its bundle; return that if it has others, to be made anew, or NIL."""
    cdef Rule *rule = &engine.rules[number]
    cdef uint32_t at = find_bundle(engine, bundle_key(policy, rule.direction, rule.label)), place = 0
    cdef Bundle *bundle = &engine.bundles[at]
    while bundle.rules[place] != number:
        place += 1
    bundle.rules_count -= 1
    bundle.rules[place] = bundle.rules[bundle.rules_count]
    if bundle.rules_count:
        return at
    drop_bundle(engine, policy, at, rule)
    return NIL


cdef int change_policy(Engine *engine, uint32_t policy, list removed, list added) except -1:
    """Carry a change of rules over to one policy: part of a range for one rule, whole bundles for many."""
    cdef bint one_by_one = len(removed) + len(added) <= ONE_BY_ONE_MAX
    cdef uint32_t number, at
    cdef set stale = set()
    for number in removed:
        at = take_from_bundle(engine, policy, number)
        if at != NIL and one_by_one:
            remake(engine, at, &engine.rules[number])
        elif at != NIL:
            stale.add(number)
    for number in added:
        at = put_in_bundle(engine, policy, number)
        if one_by_one:
            remake(engine, at, &engine.rules[number])
        else:
            stale.add(number)
    if stale:
        remake_stale(engine, policy, stale)
    return 0


cdef int remake_stale(Engine *engine, uint32_t policy, set rules) except -1:
    """Make the ranges anew of every bundle and protocol that one of ``rules`` belongs to."""
    cdef uint32_t number, at
    cdef Rule whole
    cdef set done = set()
    for number in rules:
        at = find_bundle(engine, bundle_key(policy, engine.rules[number].direction, engine.rules[number].label))
        if at == NIL or (at, engine.rules[number].protocol) in done:
            continue
        done.add((at, engine.rules[number].protocol))
        whole = engine.rules[number]
        whole.first, whole.last = 0, 0xFFFF
        remake(engine, at, &whole)
    return 0


cdef void empty_policy(Engine *engine, uint32_t policy, list rules) noexcept:
    """Drop every bundle that one of ``rules`` belongs to."""
    cdef uint32_t number, at
    for number in rules:
        at = find_bundle(engine, bundle_key(policy, engine.rules[number].direction, engine.rules[number].label))
        if at != NIL:
            drop_bundle(engine, policy, at, &engine.rules[number])

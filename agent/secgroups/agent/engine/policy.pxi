# Compiled rules: an address has labels (networks that cover it, groups it is a member of), a policy is a distinct set of groups, and
# the rules of a policy, direction and label are one bundle. A verdict costs a look-up for each label of the address, a change one
# bundle for each policy that it concerns. Nothing depends on how many rules and members there are.

cdef inline uint32_t mixed(const Engine *engine, uint64_t a, uint64_t b) noexcept nogil:
    return <uint32_t>sg_fold(a ^ engine.seed[0], b ^ engine.seed[1])


cdef int begin_index(Index *index) except -1:
    index.words = <IndexWord *>malloc(16 * sizeof(IndexWord))
    if index.words == NULL:
        raise MemoryError
    memset(index.words, 0xFF, 16 * sizeof(IndexWord))
    index.mask = 15
    index.count = 0
    return 0


cdef void insert_word(Index *index, uint32_t hashed, uint32_t number) noexcept nogil:
    cdef uint32_t at = hashed & index.mask
    while index.words[at].number != NIL:
        at = (at + 1) & index.mask
    index.words[at].hash, index.words[at].number = hashed, number


cdef int put_into(Index *index, uint32_t hashed, uint32_t number) except -1:
    cdef IndexWord *old = index.words
    cdef uint32_t at, size = index.mask + 1
    if (index.count + 1) * 2 > size:
        index.words = <IndexWord *>malloc(<size_t>size * 2 * sizeof(IndexWord))
        if index.words == NULL:
            index.words = old
            raise MemoryError
        memset(index.words, 0xFF, <size_t>size * 2 * sizeof(IndexWord))
        index.mask = size * 2 - 1
        for at in range(size):
            if old[at].number != NIL:
                insert_word(index, old[at].hash, old[at].number)
        free(old)
    insert_word(index, hashed, number)
    index.count += 1
    return 0


cdef void take_from(Index *index, uint32_t hashed, uint32_t number) noexcept nogil:
    """Remove a word that is there; those behind it move up, so that nothing marks the place."""
    cdef uint32_t at = hashed & index.mask, next_at
    while index.words[at].number != number:
        at = (at + 1) & index.mask
    next_at = (at + 1) & index.mask
    while index.words[next_at].number != NIL:
        if ((next_at - index.words[next_at].hash) & index.mask) >= ((next_at - at) & index.mask):
            index.words[at] = index.words[next_at]
            at = next_at
        next_at = (next_at + 1) & index.mask
    index.words[at].number = NIL
    index.count -= 1


cdef void begin_pool(Pool *pool, uint32_t item_bytes) noexcept:
    memset(pool, 0, sizeof(Pool))
    pool.item_bytes = item_bytes
    pool.first_free = NIL


cdef uint32_t take_item(Pool *pool) except? 0xFFFFFFFF:
    """Return the number of a zeroed item. The items may have moved."""
    cdef uint32_t number = pool.first_free, room
    cdef char *grown
    if number != NIL:
        pool.first_free = (<uint32_t *>(pool.items + <size_t>number * pool.item_bytes))[0]
    else:
        if pool.used == pool.room:
            room = pool.room * 2 if pool.room else 16
            grown = <char *>realloc(pool.items, <size_t>room * pool.item_bytes)
            if grown == NULL:
                raise MemoryError
            pool.items, pool.room = grown, room
        number = pool.used
        pool.used += 1
    memset(pool.items + <size_t>number * pool.item_bytes, 0, pool.item_bytes)
    return number


cdef void give_item(Pool *pool, uint32_t number) noexcept nogil:
    cdef char *item = pool.items + <size_t>number * pool.item_bytes
    memset(item, 0, pool.item_bytes)
    (<uint32_t *>item)[0] = pool.first_free
    pool.first_free = number


# ------------------------------------------------------------------------------------------------ ranges of ports and bundles

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


cdef int remake(Engine *engine, Bundle *bundle, const Rule *changed) except -1:
    """Bring the bundle in line with its rules after ``changed`` has come or gone."""
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


cdef inline uint32_t *shortcut(Engine *engine, uint32_t policy, const Rule *rule) noexcept nogil:
    """Return where a policy keeps the bundle of a label that every address of a family has; NULL for other labels."""
    cdef Policy *held = &engine.policies[policy]
    if rule.label == LABEL_ANYWHERE:
        return &held.anywhere[rule.direction - 1]
    if rule.label == LABEL_IPV4:
        return &held.all_ipv4[rule.direction - 1]
    if rule.label == LABEL_IPV6:
        return &held.all_ipv6[rule.direction - 1]
    return NULL


cdef inline uint32_t *bundles_of_kind(Engine *engine, uint32_t policy, const Rule *rule) noexcept nogil:
    cdef Policy *held = &engine.policies[policy]
    return &held.groups[rule.direction - 1] if rule.label & 1 else &held.networks[rule.direction - 1]


cdef uint32_t put_in_bundle(Engine *engine, uint32_t policy, uint32_t number) except? 0xFFFFFFFF:
    """Append a rule to the bundle that it belongs to, which is made if need be; return that. ``remake`` has to follow."""
    cdef Rule *rule = &engine.rules[number]
    cdef uint64_t key = bundle_key(policy, rule.direction, rule.label)
    cdef uint32_t at = find_bundle(engine, key), room
    cdef uint32_t *grown
    cdef uint32_t *short = shortcut(engine, policy, rule)
    cdef Bundle *bundle
    if at == NIL:
        at = take_item(&engine.bundle_pool)
        engine.bundles = <Bundle *>engine.bundle_pool.items
        engine.bundles[at].key = key
        put_into(&engine.bundle_index, mixed(engine, key, 1), at)
        if short != NULL:
            short[0] = at
        else:
            bundles_of_kind(engine, policy, rule)[0] += 1
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
    cdef uint32_t *short = shortcut(engine, policy, rule)
    if short != NULL:
        short[0] = NIL
    else:
        bundles_of_kind(engine, policy, rule)[0] -= 1
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
            remake(engine, &engine.bundles[at], &engine.rules[number])
        elif at != NIL:
            stale.add(number)
    for number in added:
        at = put_in_bundle(engine, policy, number)
        if one_by_one:
            remake(engine, &engine.bundles[at], &engine.rules[number])
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
        remake(engine, &engine.bundles[at], &whole)
    return 0


cdef void empty_policy(Engine *engine, uint32_t policy, list rules) noexcept:
    """Drop every bundle that one of ``rules`` belongs to."""
    cdef uint32_t number, at
    for number in rules:
        at = find_bundle(engine, bundle_key(policy, engine.rules[number].direction, engine.rules[number].label))
        if at != NIL:
            drop_bundle(engine, policy, at, &engine.rules[number])


# ------------------------------------------------------------------------------------------------ labels of addresses

cdef inline bint is_within(const Prefix *prefix, uint64_t high, uint64_t low) noexcept nogil:
    """Whether an address of the prefix's family, as a number, is covered by it."""
    if prefix.is_ipv4:
        return not (low ^ prefix.address[1]) >> (32 - prefix.length)
    if prefix.length <= 64:
        return not (high ^ prefix.address[0]) >> (64 - prefix.length)
    return high == prefix.address[0] and not (low ^ prefix.address[1]) >> (128 - prefix.length)


cdef inline uint32_t find_middle(const Engine *engine, uint32_t key) noexcept nogil:
    cdef uint32_t hashed = mixed(engine, key, 2), at = hashed & engine.middle_index.mask
    cdef const IndexWord *words = engine.middle_index.words
    while words[at].number != NIL:
        if words[at].hash == hashed and engine.middles[words[at].number].key == key:
            return words[at].number
        at = (at + 1) & engine.middle_index.mask
    return NIL


cdef inline uint32_t find_host(const Engine *engine, uint64_t first, uint64_t second) noexcept nogil:
    cdef uint32_t hashed = mixed(engine, first, second), at = hashed & engine.host_index.mask
    cdef const IndexWord *words = engine.host_index.words
    cdef const Host *host
    while words[at].number != NIL:
        if words[at].hash == hashed:
            host = &engine.hosts[words[at].number]
            if host.address[0] == first and host.address[1] == second:
                return words[at].number
        at = (at + 1) & engine.host_index.mask
    return NIL


cdef inline uint32_t find_ipv6_prefix(const Engine *engine, uint64_t high, uint64_t low) noexcept nogil:
    """Return the longest prefix that covers an address, 0 if none does: a look-up for each length that there is."""
    cdef int length
    cdef uint32_t hashed, at
    cdef const IndexWord *words = engine.prefix_index.words
    cdef const Prefix *prefix
    if not engine.prefix_index.count:
        return 0
    for length in range(128, 0, -1):
        if not engine.ipv6_prefixes[length]:
            continue
        if length <= 64:
            low = 0
            high = high >> (64 - length) << (64 - length)
        else:
            low = low >> (128 - length) << (128 - length)
        hashed = mixed(engine, high ^ <uint64_t>length, low)
        at = hashed & engine.prefix_index.mask
        while words[at].number != NIL:
            prefix = &engine.prefixes[words[at].number]
            if words[at].hash == hashed and prefix.length == length and prefix.address[0] == high and prefix.address[1] == low:
                return words[at].number
            at = (at + 1) & engine.prefix_index.mask
    return 0


cdef uint32_t middle_for(Engine *engine, uint32_t key) except? 0xFFFFFFFF:
    cdef uint32_t found = find_middle(engine, key)
    if found == NIL:
        found = take_item(&engine.middle_pool)
        engine.middles = <Middle *>engine.middle_pool.items
        engine.middles[found].key = key
        put_into(&engine.middle_index, mixed(engine, key, 2), found)
        engine.roots[key >> 8].inside += 1
    return found


cdef void drop_middle_if_empty(Engine *engine, uint32_t number) noexcept:
    cdef Middle *middle = &engine.middles[number]
    if middle.prefixes or middle.hosts:
        return
    engine.roots[middle.key >> 8].inside -= 1
    take_from(&engine.middle_index, mixed(engine, middle.key, 2), number)
    give_item(&engine.middle_pool, number)


cdef inline bint is_ipv4_pair(uint64_t first, uint64_t second) noexcept nogil:
    """Whether the 16 bytes in these words are an IPv4 address in mapped form."""
    return first == 0 and <uint32_t>second == 0xFFFF0000u


cdef inline uint32_t ipv4_number(uint64_t second) noexcept nogil:
    return sg_swap32(<uint32_t>(second >> 32))


cdef inline uint64_t ipv4_word(uint32_t number) noexcept nogil:
    return (<uint64_t>sg_swap32(number) << 32) | 0xFFFF0000u


cdef uint32_t host_for(Engine *engine, uint64_t first, uint64_t second) except? 0xFFFFFFFF:
    cdef uint32_t found = find_host(engine, first, second)
    if found == NIL:
        found = take_item(&engine.host_pool)
        engine.hosts = <Host *>engine.host_pool.items
        engine.hosts[found].address[0], engine.hosts[found].address[1] = first, second
        put_into(&engine.host_index, mixed(engine, first, second), found)
        if is_ipv4_pair(first, second):
            engine.middles[middle_for(engine, ipv4_number(second) >> 8)].hosts += 1
        else:
            engine.ipv6_hosts += 1
    return found


cdef void drop_host_if_empty(Engine *engine, uint32_t number) noexcept:
    cdef Host *host = &engine.hosts[number]
    cdef uint32_t middle
    if host.prefixes or host.groups_count:
        return
    if is_ipv4_pair(host.address[0], host.address[1]):
        middle = find_middle(engine, ipv4_number(host.address[1]) >> 8)
        engine.middles[middle].hosts -= 1
        drop_middle_if_empty(engine, middle)
    else:
        engine.ipv6_hosts -= 1
    free(host.groups)
    take_from(&engine.host_index, mixed(engine, host.address[0], host.address[1]), number)
    give_item(&engine.host_pool, number)


cdef int add_member(Engine *engine, uint64_t first, uint64_t second, uint32_t label) except -1:
    cdef uint32_t number = host_for(engine, first, second), room
    cdef Host *host = &engine.hosts[number]
    cdef uint32_t *grown
    if host.groups_count == host.groups_room:
        room = host.groups_room * 2 if host.groups_room else 1
        grown = <uint32_t *>realloc(host.groups, <size_t>room * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        host.groups, host.groups_room = grown, room
    host.groups[host.groups_count] = label
    host.groups_count += 1
    return 0


cdef void remove_member(Engine *engine, uint64_t first, uint64_t second, uint32_t label) noexcept:
    cdef uint32_t number = find_host(engine, first, second), at = 0
    cdef Host *host = &engine.hosts[number]
    while host.groups[at] != label:
        at += 1
    host.groups_count -= 1
    host.groups[at] = host.groups[host.groups_count]
    drop_host_if_empty(engine, number)


cdef inline void prefer(Engine *engine, uint32_t *held, uint32_t number) noexcept nogil:
    if not held[0] or engine.prefixes[held[0]].length <= engine.prefixes[number].length:
        held[0] = number


cdef inline void fall_back(Engine *engine, uint32_t *held, uint32_t number, uint32_t shorter, int least) noexcept nogil:
    """Put the next shorter prefix in the place of ``number``, if it is one of the same step."""
    if held[0] == number:
        held[0] = shorter if shorter and engine.prefixes[shorter].length >= least else 0


cdef int spread(Engine *engine, uint32_t number, bint comes) except -1:
    """Write an IPv4 prefix into all entries of its step that it covers, or take it out of them."""
    cdef Prefix *prefix = &engine.prefixes[number]
    cdef uint32_t address = <uint32_t>prefix.address[1], shorter = prefix.longer_than, at, place
    cdef int length = prefix.length
    if length <= 16:
        for at in range(address >> 16, (address >> 16) + (<uint32_t>1 << (16 - length))):
            if comes:
                prefer(engine, &engine.roots[at].prefix, number)
            else:
                fall_back(engine, &engine.roots[at].prefix, number, shorter, 1)
    elif length <= 24:
        for at in range(address >> 8, (address >> 8) + (<uint32_t>1 << (24 - length))):
            place = middle_for(engine, at)
            if comes:
                engine.middles[place].prefixes += 1
                prefer(engine, &engine.middles[place].prefix, number)
            else:
                engine.middles[place].prefixes -= 1
                fall_back(engine, &engine.middles[place].prefix, number, shorter, 17)
                drop_middle_if_empty(engine, place)
    else:
        for at in range(<uint32_t>1 << (32 - length)):
            place = host_for(engine, 0, ipv4_word(address + at))
            if comes:
                engine.hosts[place].prefixes += 1
                prefer(engine, &engine.hosts[place].prefix, number)
            else:
                engine.hosts[place].prefixes -= 1
                fall_back(engine, &engine.hosts[place].prefix, number, shorter, 25)
                drop_host_if_empty(engine, place)
    return 0


cdef uint32_t add_prefix(Engine *engine, uint64_t high, uint64_t low, int length, bint is_ipv4, uint32_t label) except? 0xFFFFFFFF:
    """Return the number of a new prefix, which is not among those held and not of length 0."""
    cdef uint32_t number = take_item(&engine.prefix_pool), at, shorter = 0
    cdef Prefix *made
    cdef Prefix *other
    engine.prefixes = <Prefix *>engine.prefix_pool.items
    made = &engine.prefixes[number]
    made.address[0], made.address[1] = high, low
    made.length, made.is_ipv4, made.is_held, made.label = length, is_ipv4, 1, label
    for at in range(1, engine.prefix_pool.used):
        other = &engine.prefixes[at]
        if not other.is_held or other.is_ipv4 != made.is_ipv4 or at == number:
            continue
        if other.length < length:
            if is_within(other, high, low) and (not shorter or engine.prefixes[shorter].length < other.length):
                shorter = at
        elif is_within(made, other.address[0], other.address[1]):
            if not other.longer_than or engine.prefixes[other.longer_than].length < length:
                other.longer_than = number
    made.longer_than = shorter
    if is_ipv4:
        spread(engine, number, True)
    else:
        engine.ipv6_prefixes[length] += 1
        put_into(&engine.prefix_index, mixed(engine, high ^ <uint64_t>length, low), number)
    return number


cdef int remove_prefix(Engine *engine, uint32_t number) except -1:
    cdef Prefix *prefix = &engine.prefixes[number]
    cdef uint32_t at
    for at in range(1, engine.prefix_pool.used):
        if engine.prefixes[at].is_held and engine.prefixes[at].longer_than == number:
            engine.prefixes[at].longer_than = prefix.longer_than
    if prefix.is_ipv4:
        spread(engine, number, False)
    else:
        engine.ipv6_prefixes[prefix.length] -= 1
        take_from(&engine.prefix_index, mixed(engine, prefix.address[0] ^ <uint64_t>prefix.length, prefix.address[1]), number)
    give_item(&engine.prefix_pool, number)
    return 0


# ------------------------------------------------------------------------------------------------ the question

cdef inline void consider_label(
    const Engine *engine, uint32_t policy, const Opening *opening, uint32_t label, uint32_t *best
) noexcept nogil:
    cdef uint32_t bundle = find_bundle(engine, bundle_key(policy, opening.direction, label))
    if bundle != NIL:
        consider(engine, &engine.bundles[bundle], opening, best)


cdef uint32_t find_rule(const Engine *engine, uint32_t policy_number, const Opening *opening) noexcept nogil:
    """Return the rule with the lowest id of those that allow ``opening``, 0 if none does."""
    cdef const Policy *policy = &engine.policies[policy_number]
    cdef int way = opening.direction - 1
    cdef uint32_t best = 0, prefix = 0, host = NIL, middle, at, number
    if policy.anywhere[way] != NIL:
        consider(engine, &engine.bundles[policy.anywhere[way]], opening, &best)
    at = policy.all_ipv4[way] if opening.is_ipv4 else policy.all_ipv6[way]
    if at != NIL:
        consider(engine, &engine.bundles[at], opening, &best)
    if not policy.networks[way] and not policy.groups[way]:
        return best
    if opening.is_ipv4:
        number = ipv4_number(opening.remote[1])
        prefix = engine.roots[number >> 16].prefix
        if engine.roots[number >> 16].inside:
            middle = find_middle(engine, number >> 8)
            if middle != NIL:
                if engine.middles[middle].prefix:
                    prefix = engine.middles[middle].prefix
                if engine.middles[middle].hosts:
                    host = find_host(engine, opening.remote[0], opening.remote[1])
                    if host != NIL and engine.hosts[host].prefix:
                        prefix = engine.hosts[host].prefix
    else:
        if policy.networks[way]:
            prefix = find_ipv6_prefix(engine, sg_swap64(opening.remote[0]), sg_swap64(opening.remote[1]))
        if engine.ipv6_hosts:
            host = find_host(engine, opening.remote[0], opening.remote[1])
    if policy.networks[way]:
        while prefix:
            consider_label(engine, policy_number, opening, engine.prefixes[prefix].label, &best)
            prefix = engine.prefixes[prefix].longer_than
    if policy.groups[way] and host != NIL:
        for at in range(engine.hosts[host].groups_count):
            consider_label(engine, policy_number, opening, engine.hosts[host].groups[at], &best)
    return best


cdef inline void prefetch_bundles(const Engine *engine, uint32_t policy, const Key *key, uint8_t direction) noexcept nogil:
    """Ask for the memory in which the bundles of the networks around an IPv4 address are indexed."""
    cdef uint32_t prefix
    if not is_ipv4_pair(key.remote[0], key.remote[1]):
        return
    prefix = engine.roots[ipv4_number(key.remote[1]) >> 16].prefix
    while prefix:
        sg_prefetch(
            &engine.bundle_index.words[
                mixed(engine, bundle_key(policy, direction, engine.prefixes[prefix].label), 1) & engine.bundle_index.mask
            ]
        )
        prefix = engine.prefixes[prefix].longer_than

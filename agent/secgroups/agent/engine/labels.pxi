# The labels of addresses: networks that cover them, groups that they are members of.

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
    if not may_have(&engine.middle_index, hashed):
        return NIL
    while words[at].number != NIL:
        if words[at].hash == hashed and engine.middles[words[at].number].key == key:
            return words[at].number
        at = (at + 1) & engine.middle_index.mask
    return NIL


cdef inline uint32_t find_host(const Engine *engine, uint64_t first, uint64_t second) noexcept nogil:
    cdef uint32_t hashed = mixed(engine, first, second), at = hashed & engine.host_index.mask
    cdef const IndexWord *words = engine.host_index.words
    cdef const Host *host
    if not may_have(&engine.host_index, hashed):
        return NIL
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

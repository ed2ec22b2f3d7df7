# Everything that has to be true of the tables between two calls: for tests, never on a packet's way. A shard is locked meanwhile.

cdef class Faults:
    """What is not as it must be; a fault is told once a place, and after fifty nothing more is."""

    cdef list found

    def __cinit__(self):
        self.found = []

    cdef int unless(self, bint holds, what, uint64_t at) except -1:
        if not holds and len(self.found) < 50:
            self.found.append(f"{what}: {at}")
        return 0


cdef int check_flows(Engine *engine, uint32_t number, Faults faults, list endpoint_flows, list server_flows, list rule_users) except -1:
    """Every live entry is found by its key, in one list of the wheel, and counted; every other one is free."""
    cdef Shard *shard = &engine.shards[number]
    cdef uint32_t place, live = 0, server
    cdef Flow *flow
    cdef Key key
    for place in range(shard.never_used):
        flow = &shard.flows[place]
        if not flow.status:
            continue
        live += 1
        if flow.endpoint >= engine.endpoint_pool.used or flow.rule >= engine.rules_room:
            faults.unless(False, "endpoint or rule of a flow beyond those there are", place)
            continue
        key = key_of(flow)
        faults.unless(find_entry(shard, &key, hash_of(shard, &key)) == place, "flow not found by its key", place)
        faults.unless(1 <= flow.status & STATE_MASK <= STATE_ANSWERED, "state of a flow", place)
        faults.unless((flow.protocol == TCP) == ((flow.status & STATE_MASK) < STATE_UNANSWERED), "state not of its protocol", place)
        server = engine.endpoints[flow.endpoint].server
        faults.unless(server % engine.shards_count == number, "flow in another shard than its server's", place)
        endpoint_flows[flow.endpoint] += 1
        server_flows[server] += 1
        rule_users[flow.rule] += 1
    faults.unless(live == shard.count and live <= shard.flows_max, "count of flows", shard.count)
    for place in range(shard.fragments_max):
        if shard.fragments[place].is_held:
            rule_users[shard.fragments[place].rule] += 1
    return 0


cdef int check_index(Engine *engine, Shard *shard, Faults faults) except -1:
    """Every word leads to a live entry of its own, and every chunk that was found full on the way there has counted it."""
    cdef uint32_t at, slot, word, place, home, words = 0
    cdef list passed = [0] * shard.chunks
    cdef set seen = set()
    cdef Key key
    cdef uint64_t hashed
    for at in range(shard.chunks):
        for slot in range(CHUNK_FLOWS):
            word = shard.index[<size_t>at * CHUNK_WORDS + slot]
            place = word & shard.places
            if not word:
                continue
            words += 1
            if place >= shard.never_used or not shard.flows[place].status or place in seen:
                faults.unless(False, "word of no flow", place)
                continue
            seen.add(place)
            key = key_of(&shard.flows[place])
            hashed = hash_of(shard, &key)
            faults.unless(word & ~shard.places == tag_of(shard.places, hashed), "tag of a flow", place)
            home = <uint32_t>((chunk_of(shard, hashed) - shard.index) // CHUNK_WORDS)
            while home != at:
                passed[home] += 1
                home = home + 1 if home + 1 < shard.chunks else 0
    faults.unless(words == shard.count, "words of the index", words)
    for at in range(shard.chunks):
        faults.unless(shard.index[<size_t>at * CHUNK_WORDS + CHUNK_FLOWS] == passed[at], "count of those that went on", at)
    return 0


cdef int check_wheel(Shard *shard, uint64_t now_ns, Faults faults) except -1:
    """Every live entry is in one slot, which comes up no later than its deadline, or than now; every other one used before is free."""
    cdef uint32_t slot, head, place, last, linked = 0, idle = 0
    cdef uint64_t tick, due
    for slot in range(WHEEL_SLOTS):
        head = last = shard.flows_max + slot
        place = shard.links[head].wheel_next
        while place != head:
            if place >= shard.never_used or linked > shard.count:
                faults.unless(False, "list of a slot of the wheel", slot)
                return 0
            linked += 1
            faults.unless(shard.flows[place].status and shard.flows[place].wheel == slot, "slot of a flow", place)
            faults.unless(shard.links[place].wheel_previous == last, "way back in the wheel", place)
            tick = shard.wheel_tick + ((slot - shard.wheel_tick) & (WHEEL_SLOTS - 1))
            due = max(shard.flows[place].deadline_ns, now_ns) >> WHEEL_SHIFT
            faults.unless(tick <= max(due, shard.wheel_tick), "slot after the deadline", place)
            last, place = place, shard.links[place].wheel_next
        faults.unless(shard.links[head].wheel_previous == last, "end of a slot", slot)
    faults.unless(linked == shard.count, "flows in the wheel", linked)
    place = shard.first_free
    while place != NIL and idle <= shard.never_used:
        faults.unless(not shard.flows[place].status, "free entry", place)
        idle += 1
        place = shard.links[place].wheel_next
    faults.unless(linked + idle == shard.never_used and shard.never_used <= shard.flows_max, "free entries", idle)
    return 0


cdef int check_lines(Engine *engine, uint32_t number, Faults faults) except -1:
    """Each server has its flows in two lines, the unanswered ones in the order of their opening."""
    cdef Shard *shard = &engine.shards[number]
    cdef uint32_t at, linked = 0, unanswered = 0
    for at in range(engine.servers_used):
        if at % engine.shards_count == number:
            unanswered += check_line(engine, shard, at, &engine.servers[at].unanswered, 0, faults)
            linked += check_line(engine, shard, at, &engine.servers[at].answered, FLAG_ANSWERED, faults)
    faults.unless(unanswered == shard.unanswered, "unanswered flows", unanswered)
    faults.unless(linked + unanswered == shard.count, "flows in the lines of servers", linked)
    return 0


cdef uint32_t check_line(
    Engine *engine, Shard *shard, uint32_t server, const Line *line, uint8_t answered, Faults faults
) except? 0xFFFFFFFF:
    """Return how many flows stand in it."""
    cdef uint32_t place = line.first, last = NIL, linked = 0
    while place != NIL:
        if place >= shard.never_used or linked > shard.count:
            faults.unless(False, "line of flows of server", server)
            break
        linked += 1
        faults.unless(engine.endpoints[shard.flows[place].endpoint].server == server, "flow in the line of another server", place)
        faults.unless(shard.flows[place].status and shard.flows[place].status & FLAG_ANSWERED == answered, "flow in the other line", place)
        faults.unless(shard.links[place].line_previous == last, "way back in a line", place)
        if last != NIL and not answered:
            faults.unless(<int32_t>(shard.opened[place] - shard.opened[last]) >= 0, "order of unanswered flows", place)
        last, place = place, shard.links[place].line_next
    faults.unless(line.last == last, "last of a line of server", server)
    return linked


cdef int check_fragments(Shard *shard, Faults faults) except -1:
    """First fragments are in one list by age and found by their keys; the other places are free."""
    cdef uint32_t place = shard.fragments_oldest, last = NIL, held = 0, idle = 0
    cdef uint32_t *link
    while place != NIL and held <= shard.fragments_max:
        held += 1
        faults.unless(shard.fragments[place].is_held and shard.fragments[place].older == last, "list of fragments", place)
        link = &shard.fragment_buckets[bucket_of_held(shard, &shard.fragments[place])]
        while link[0] != place and link[0] != NIL:
            link = &shard.fragments[link[0]].bucket_next
        faults.unless(link[0] == place, "fragment not found by its key", place)
        last, place = place, shard.fragments[place].newer
    faults.unless(held == shard.fragments_count and shard.fragments_newest == last, "count of fragments", held)
    place = shard.fragments_free
    while place != NIL and place < shard.fragments_max and idle <= shard.fragments_max:
        faults.unless(not shard.fragments[place].is_held, "free fragment", place)
        idle += 1
        place = shard.fragments[place].bucket_next
    faults.unless(held + idle == shard.fragments_max, "free fragments", idle)
    return 0


cdef int check_word_index(const Index *index, const Pool *pool, uint32_t others, what, Faults faults) except -1:
    """The index leads to each item of the pool that is in use, of which ``others`` are not indexed, once."""
    cdef uint32_t at, words = 0, idle = 0, place = pool.first_free
    cdef set numbers = set(), marks = set()
    for at in range(index.mask + 1):
        if index.words[at].number != NIL:
            words += 1
            numbers.add(index.words[at].number)
            marks.add(index.words[at].hash & (index.mask << 2 | 3))
    while place != NIL and idle <= pool.used:
        faults.unless(place not in numbers, f"free item in the index of {what}", place)
        idle += 1
        place = (<uint32_t *>(pool.items + <size_t>place * pool.item_bytes))[0]
    for at in range((index.mask + 1) * 4):
        faults.unless(may_have(index, at) == (at in marks), f"mark in the index of {what}", at)
    faults.unless(words == index.count == len(numbers), f"words in the index of {what}", words)
    faults.unless(words + idle + others == pool.used, f"items of {what} in use", pool.used - idle)
    return 0


cdef int check_ranges(Engine *engine, const Ranges *ranges, uint32_t number, Faults faults) except -1:
    cdef uint32_t at
    cdef int64_t last = -1
    for at in range(ranges.count):
        faults.unless(ranges.held[at].first > last and ranges.held[at].last >= ranges.held[at].first, "order of ranges of bundle", number)
        faults.unless(engine.rules[ranges.held[at].rule].is_in_force, "rule that is gone in a range of bundle", number)
        last = ranges.held[at].last
    return 0


cdef int check_hull(const Engine *engine, const IndexWord *word, Faults faults) except -1:
    """What is noted where a bundle is found is what its ranges come to."""
    cdef uint64_t key = engine.bundles[word.number].key
    cdef const Side *side = &engine.policies[key >> 33].sides[(key >> 32) & 1]
    cdef uint32_t label = <uint32_t>key
    cdef Hull hull = hull_of(&engine.bundles[word.number])
    faults.unless(sg_word(&word.hull) == sg_word(&hull), "hull of bundle", word.number)
    if label <= WHOLE_LABELS:
        faults.unless(side.whole[label - 1] == word.number, "bundle of a whole family in the policy", word.number)
        faults.unless(sg_word(&side.hulls[label - 1]) == sg_word(&hull), "hull of bundle in the policy", word.number)
    return 0


cdef int check_rules(Engine *engine, Faults faults) except -1:
    """Indexes, ranges and what lies within each part of the addresses."""
    cdef uint32_t at, other, hosts6 = 0, networks4 = 0, roots = 0
    cdef dict inside = {}, hosts = {}
    for at in range(engine.prefix_pool.used):
        networks4 += engine.prefixes[at].is_held and engine.prefixes[at].is_ipv4
    check_word_index(&engine.bundle_index, &engine.bundle_pool, 0, "bundles", faults)
    check_word_index(&engine.middle_index, &engine.middle_pool, 0, "/24", faults)
    check_word_index(&engine.host_index, &engine.host_pool, 0, "addresses", faults)
    # Number 0 is no prefix, and those of IPv4 are found by their addresses.
    check_word_index(&engine.prefix_index, &engine.prefix_pool, networks4 + 1, "prefixes", faults)
    for at in range(engine.bundle_index.mask + 1):
        other = engine.bundle_index.words[at].number
        if other != NIL:
            faults.unless(find_bundle(engine, engine.bundles[other].key) == other, "bundle not found by its key", other)
            check_hull(engine, &engine.bundle_index.words[at], faults)
            check_ranges(engine, &engine.bundles[other].tcp, other, faults)
            check_ranges(engine, &engine.bundles[other].udp, other, faults)
            check_ranges(engine, &engine.bundles[other].icmp, other, faults)
    for at in range(engine.host_index.mask + 1):
        other = engine.host_index.words[at].number
        if other == NIL:
            continue
        faults.unless(find_host(engine, engine.hosts[other].address[0], engine.hosts[other].address[1]) == other, "lost address", other)
        faults.unless(engine.hosts[other].groups_count or engine.hosts[other].prefixes, "address of which nothing is known", other)
        if is_ipv4_pair(engine.hosts[other].address[0], engine.hosts[other].address[1]):
            key = ipv4_number(engine.hosts[other].address[1]) >> 8
            hosts[key] = hosts.get(key, 0) + 1
        else:
            hosts6 += 1
    faults.unless(hosts6 == engine.ipv6_hosts, "addresses of IPv6", hosts6)
    for at in range(engine.middle_index.mask + 1):
        other = engine.middle_index.words[at].number
        if other != NIL:
            key = engine.middles[other].key
            faults.unless(engine.middles[other].hosts == hosts.get(key, 0), "addresses in a /24", key)
            inside[key >> 8] = inside.get(key >> 8, 0) + 1
    for key, count in inside.items():
        faults.unless(engine.roots[<uint32_t>key].inside == count, "what is inside of a /16", key)
    for at in range(65_536):
        roots += engine.roots[at].inside != 0
    faults.unless(roots == len(inside), "parts of IPv4 of which something is known", roots)
    return 0

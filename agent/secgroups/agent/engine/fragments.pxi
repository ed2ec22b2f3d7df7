# What became of first fragments: a fixed number of them in the order of their coming, in buckets of a seeded hash.

cdef inline uint32_t fragment_bucket(const Shard *shard, const Record *record) noexcept nogil:
    cdef uint64_t ends = sg_fold(record.source[0] ^ shard.seed[1], record.source[1] ^ shard.seed[2])
    ends ^= sg_fold(record.destination[0] ^ shard.seed[3], record.destination[1] ^ shard.seed[4])
    cdef uint64_t rest = (<uint64_t>record.server << 32) | record.fragment_id
    ends = sg_fold(ends ^ shard.seed[5], rest ^ (<uint64_t>record.protocol << 8 | record.direction) ^ shard.seed[0])
    return <uint32_t>(((ends >> 32) * shard.fragment_buckets_count) >> 32)


cdef uint32_t find_first_fragment(const Shard *shard, const Record *record) noexcept nogil:
    cdef uint32_t at = shard.fragment_buckets[fragment_bucket(shard, record)]
    cdef FirstFragment *held
    while at != NIL:
        held = &shard.fragments[at]
        if (
            held.fragment_id == record.fragment_id
            and held.server == record.server
            and held.direction == record.direction
            and held.protocol == record.protocol
            and held.ip_version == record.ip_version
            and held.source[0] == record.source[0]
            and held.source[1] == record.source[1]
            and held.destination[0] == record.destination[0]
            and held.destination[1] == record.destination[1]
        ):
            return at
        at = held.bucket_next
    return NIL


cdef uint32_t bucket_of_held(const Shard *shard, const FirstFragment *held) noexcept nogil:
    cdef Record record
    record.source[0], record.source[1] = held.source[0], held.source[1]
    record.destination[0], record.destination[1] = held.destination[0], held.destination[1]
    record.server, record.fragment_id = held.server, held.fragment_id
    record.protocol, record.direction = held.protocol, held.direction
    return fragment_bucket(shard, &record)


cdef void forget_fragment(Shard *shard, uint32_t place) noexcept nogil:
    cdef FirstFragment *held = &shard.fragments[place]
    cdef uint32_t *link = &shard.fragment_buckets[bucket_of_held(shard, held)]
    while link[0] != place:
        link = &shard.fragments[link[0]].bucket_next
    link[0] = held.bucket_next
    if held.older != NIL:
        shard.fragments[held.older].newer = held.newer
    else:
        shard.fragments_oldest = held.newer
    if held.newer != NIL:
        shard.fragments[held.newer].older = held.older
    else:
        shard.fragments_newest = held.older
    if held.rule:
        shard.rules[held.rule].users -= 1
    held.is_held = 0
    held.bucket_next = shard.fragments_free
    shard.fragments_free = place
    shard.fragments_count -= 1


cdef uint32_t take_fragment(Shard *shard) noexcept nogil:
    """Return a free place; if there is none the oldest goes."""
    cdef uint32_t place
    if shard.fragments_count == shard.fragments_max:
        forget_fragment(shard, shard.fragments_oldest)
    place = shard.fragments_free
    shard.fragments_free = shard.fragments[place].bucket_next
    return place


cdef void link_fragment(Shard *shard, uint32_t place, uint32_t bucket) noexcept nogil:
    """Hold what was written at ``place`` as the newest."""
    cdef FirstFragment *made = &shard.fragments[place]
    sg_write_barrier()
    made.is_held = 1
    if made.rule:
        shard.rules[made.rule].users += 1
    made.bucket_next = shard.fragment_buckets[bucket]
    shard.fragment_buckets[bucket] = place
    made.newer = NIL
    made.older = shard.fragments_newest
    if made.older != NIL:
        shard.fragments[made.older].newer = place
    else:
        shard.fragments_oldest = place
    shard.fragments_newest = place
    shard.fragments_count += 1


cdef void remember_fragment(Shard *shard, const Case *case, uint64_t now_ns) noexcept nogil:
    """A newer one takes the place of one with the same key; if there is no room the oldest goes."""
    cdef const Record *record = case.record
    cdef uint32_t place = find_first_fragment(shard, record)
    cdef FirstFragment *made
    if place != NIL:
        forget_fragment(shard, place)
    place = take_fragment(shard)
    made = &shard.fragments[place]
    # What forgot the entry must be in memory before what is written now.
    sg_write_barrier()
    made.source[0], made.source[1] = record.source[0], record.source[1]
    made.destination[0], made.destination[1] = record.destination[0], record.destination[1]
    made.server, made.fragment_id = record.server, record.fragment_id
    made.protocol, made.direction, made.ip_version = record.protocol, record.direction, record.ip_version
    made.reason, made.rule, made.epoch = case.reason, case.rule, case.server.epoch
    made.deadline_ns = now_ns + FRAGMENT_KEPT_NS
    link_fragment(shard, place, fragment_bucket(shard, record))

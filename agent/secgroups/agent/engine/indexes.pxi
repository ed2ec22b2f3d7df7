# Where things of the rules are: pools of items that keep their numbers, and indexes of them by hash.

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


cdef void insert_word(Index *index, const IndexWord *word) noexcept nogil:
    cdef uint32_t at = word.hash & index.mask
    while index.words[at].number != NIL:
        at = (at + 1) & index.mask
    index.words[at] = word[0]


cdef int put_into(Index *index, uint32_t hashed, uint32_t number) except -1:
    cdef IndexWord *old = index.words
    cdef IndexWord word
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
                insert_word(index, &old[at])
        free(old)
    word.hash, word.number = hashed, number
    word.hull[0] = word.hull[2] = 0
    word.hull[1] = word.hull[3] = 0xFFFF
    insert_word(index, &word)
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

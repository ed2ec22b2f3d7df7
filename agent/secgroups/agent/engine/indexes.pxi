# Where things of the rules are: pools of items that keep their numbers, and indexes of them by hash.

cdef inline uint32_t mixed(const Engine *engine, uint64_t a, uint64_t b) noexcept nogil:
    return <uint32_t>sg_fold(a ^ engine.seed[0], b ^ engine.seed[1])


cdef inline bint may_have(const Index *index, uint32_t hashed) noexcept nogil:
    """Whether something may be indexed with this hash."""
    cdef uint32_t mark = hashed & (index.mask << 2 | 3)
    return (index.marks[mark >> 6] >> (mark & 63)) & 1


cdef inline void set_mark(Index *index, uint32_t hashed) noexcept nogil:
    cdef uint32_t mark = hashed & (index.mask << 2 | 3)
    index.marks[mark >> 6] |= <uint64_t>1 << (mark & 63)


cdef void clear_mark(Index *index, uint32_t hashed) noexcept nogil:
    """Take the mark of a hash away, unless another word has it too: such words have the same home, and no free one between."""
    cdef uint32_t mark = hashed & (index.mask << 2 | 3), at = hashed & index.mask
    while index.words[at].number != NIL:
        if (index.words[at].hash & (index.mask << 2 | 3)) == mark:
            return
        at = (at + 1) & index.mask
    index.marks[mark >> 6] &= ~(<uint64_t>1 << (mark & 63))


cdef int take_words(Index *index, uint32_t size) except -1:
    """Give an index this many free words, a power of two from 16 on, in place of those that it has."""
    cdef IndexWord *words = <IndexWord *>malloc(<size_t>size * sizeof(IndexWord))
    cdef uint64_t *marks = <uint64_t *>calloc(size // 16, sizeof(uint64_t))
    if words == NULL or marks == NULL:
        free(words)
        free(marks)
        raise MemoryError
    memset(words, 0xFF, <size_t>size * sizeof(IndexWord))
    index.words, index.marks, index.mask = words, marks, size - 1
    return 0


cdef int begin_index(Index *index) except -1:
    index.count = 0
    return take_words(index, 16)


cdef void end_index(Index *index) noexcept:
    free(index.words)
    free(index.marks)


cdef void insert_word(Index *index, const IndexWord *word) noexcept nogil:
    cdef uint32_t at = word.hash & index.mask
    while index.words[at].number != NIL:
        at = (at + 1) & index.mask
    index.words[at] = word[0]
    set_mark(index, word.hash)


cdef int put_into(Index *index, uint32_t hashed, uint32_t number) except -1:
    cdef Index old = index[0]
    cdef IndexWord word
    cdef uint32_t at
    if (index.count + 1) * 2 > index.mask + 1:
        take_words(index, (index.mask + 1) * 2)
        for at in range(old.mask + 1):
            if old.words[at].number != NIL:
                insert_word(index, &old.words[at])
        end_index(&old)
    word.hash, word.number = hashed, number
    word.hull.tcp_first = word.hull.udp_first = 0
    word.hull.tcp_last = word.hull.udp_last = 0xFFFF
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
    clear_mark(index, hashed)


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

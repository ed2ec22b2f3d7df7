# What C has and Cython has not: prefetching, a lock, one multiplication to 128 bits, sixteen comparisons at once, memory in huge pages.

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sched.h>
    #include <sys/mman.h>

    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the engine reads its records in place and so needs a little-endian machine"
    #endif

    /* A cache line of zeros: a chunk in which nothing is indexed, a flow that is free. */
    static const uint64_t sg_nothing[8] __attribute__((aligned(64)));

    #define sg_prefetch(address) __builtin_prefetch((address), 1, 3)
    #define sg_likely(x) __builtin_expect(!!(x), 1)
    #define sg_unlikely(x) __builtin_expect(!!(x), 0)

    static inline uint64_t sg_fold(uint64_t a, uint64_t b) {
        __uint128_t product = (__uint128_t)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    /* A number below limit, by the upper bits of a hash. */
    static inline uint64_t sg_scale(uint64_t hash, uint64_t limit) { return (uint64_t)((__uint128_t)hash * limit >> 64); }

    /* A bit for each of the first 15 words of a chunk that are wanted where the mask has bits. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline uint32_t sg_match(const uint32_t *chunk, uint32_t mask, uint32_t wanted) {
        const __m128i *words = (const __m128i *)chunk;
        __m128i seen = _mm_set1_epi32((int)mask), same = _mm_set1_epi32((int)wanted);
        __m128i a = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(words), seen), same);
        __m128i b = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(words + 1), seen), same);
        __m128i c = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(words + 2), seen), same);
        __m128i d = _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(words + 3), seen), same);
        __m128i all = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
        return (uint32_t)_mm_movemask_epi8(all) & 0x7fff;
    }
    #else
    static inline uint32_t sg_match(const uint32_t *chunk, uint32_t mask, uint32_t wanted) {
        uint32_t found = 0;
        for (int at = 0; at < 15; at++) found |= (uint32_t)((chunk[at] & mask) == wanted) << at;
        return found;
    }
    #endif

    static inline uint64_t sg_word(const void *at) { uint64_t word; memcpy(&word, at, 8); return word; }
    static inline void sg_set_word(void *at, uint64_t word) { memcpy(at, &word, 8); }
    static inline uint32_t sg_half_word(const void *at) { uint32_t word; memcpy(&word, at, 4); return word; }
    static inline uint32_t sg_pair(const void *at) { uint16_t pair; memcpy(&pair, at, 2); return pair; }
    static inline uint32_t sg_rotate(uint32_t word, uint32_t bits) { return word << bits | word >> (-bits & 31); }
    /* Whether the sum, which is kept, has gone round. */
    static inline int sg_add(uint32_t *held, uint32_t more) { return __builtin_add_overflow(*held, more, held); }
    static inline int sg_lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }
    static inline uint32_t sg_swap32(uint32_t word) { return __builtin_bswap32(word); }
    static inline uint64_t sg_swap64(uint64_t word) { return __builtin_bswap64(word); }

    /* A holder keeps a lock for microseconds; should the holder have lost its core, waiting gives way. */
    static inline void sg_lock(int *lock) {
        int spins = 0;
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) {
            while (__atomic_load_n(lock, __ATOMIC_RELAXED)) {
                if (++spins > 200) { sched_yield(); spins = 0; }
            }
        }
    }
    static inline int sg_try_lock(int *lock) { return !__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE); }
    static inline void sg_unlock(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }
    /* Between two steps of long work: without it the lock would be taken again before anybody who waits for it sees it free. */
    static inline void sg_unlock_for_others(int *lock) { sg_unlock(lock); sched_yield(); }
    /* A gate is shut while somebody waits for locks, or has them, who is to have them before those that come again and again. */
    static inline void sg_shut(int *gate) { __atomic_fetch_add(gate, 1, __ATOMIC_RELAXED); }
    static inline void sg_open(int *gate) { __atomic_fetch_sub(gate, 1, __ATOMIC_RELAXED); }
    static inline void sg_pass(const int *gate) { while (__atomic_load_n(gate, __ATOMIC_RELAXED)) sched_yield(); }
    /* Nothing written before may reach memory after what is written next: for files that a killed process leaves behind. */
    #define sg_write_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)

    /* Zeroed memory of the size of a table. The checked build takes each from malloc, where every access is watched. */
    static inline void *sg_take_memory(size_t bytes) {
    #ifdef SECGROUPS_CHECKED
        return calloc(1, bytes);
    #else
        const size_t huge = 2 << 20;
        size_t whole = bytes < huge ? bytes : (bytes + huge - 1) / huge * huge, spare = bytes < huge ? 0 : huge;
        char *made = mmap(NULL, whole + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *begin = made;
        if (made == MAP_FAILED) return NULL;
        if (spare) {
            /* Only what begins where a huge page does can be one. */
            begin = (char *)(((uintptr_t)made + huge - 1) / huge * huge);
            if (begin > made) munmap(made, begin - made);
            if (made + spare > begin) munmap(begin + whole, made + spare - begin);
            madvise(begin, whole, MADV_HUGEPAGE);
        }
        return begin;
    #endif
    }
    static inline void sg_give_memory(void *made, size_t bytes) {
        const size_t huge = 2 << 20;
        if (!made) return;
        if (bytes >= huge) bytes = (bytes + huge - 1) / huge * huge;
    #ifdef SECGROUPS_CHECKED
        (void)bytes;
        free(made);
    #else
        munmap(made, bytes);
    #endif
    }
    #ifndef MADV_COLLAPSE
    #define MADV_COLLAPSE 25
    #endif
    /* A file of a tmpfs gets huge pages only where it begins as one does, and, as most are mounted, only if told to: what kernels
       before 6.1 can't do. Without them it works as well, slower. */
    static inline void *sg_map_file(int file, size_t bytes) {
        const size_t huge = 2 << 20;
        char *held = mmap(NULL, bytes + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *begin, *end;
        if (held == MAP_FAILED) return NULL;
        begin = (char *)(((uintptr_t)held + huge - 1) / huge * huge);
        end = begin + (bytes + 4095) / 4096 * 4096;
        if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
            munmap(held, bytes + huge);
            return NULL;
        }
        if (begin > held) munmap(held, begin - held);
        if (held + bytes + huge > end) munmap(end, held + bytes + huge - end);
        madvise(begin, bytes, MADV_HUGEPAGE);
        madvise(begin, bytes, MADV_COLLAPSE);
        return begin;
    }
    static inline void sg_unmap(void *made, size_t bytes) { munmap(made, bytes); }
    #ifdef SECGROUPS_CHECKED
    #define sg_checked 1
    #else
    #define sg_checked 0
    #endif
    """
    const int sg_checked
    const uint64_t sg_nothing[8]
    void sg_prefetch(const void *address) noexcept nogil
    bint sg_likely(bint x) noexcept nogil
    bint sg_unlikely(bint x) noexcept nogil
    uint64_t sg_fold(uint64_t a, uint64_t b) noexcept nogil
    uint64_t sg_scale(uint64_t hash, uint64_t limit) noexcept nogil
    uint32_t sg_match(const uint32_t *chunk, uint32_t mask, uint32_t wanted) noexcept nogil
    uint64_t sg_word(const void *at) noexcept nogil
    void sg_set_word(void *at, uint64_t word) noexcept nogil
    uint32_t sg_half_word(const void *at) noexcept nogil
    uint32_t sg_pair(const void *at) noexcept nogil
    uint32_t sg_rotate(uint32_t word, uint32_t bits) noexcept nogil
    bint sg_add(uint32_t *held, uint32_t more) noexcept nogil
    int sg_lowest_bit(uint32_t bits) noexcept nogil
    uint32_t sg_swap32(uint32_t word) noexcept nogil
    uint64_t sg_swap64(uint64_t word) noexcept nogil
    void sg_lock(int *lock) noexcept nogil
    bint sg_try_lock(int *lock) noexcept nogil
    void sg_unlock(int *lock) noexcept nogil
    void sg_unlock_for_others(int *lock) noexcept nogil
    void sg_shut(int *gate) noexcept nogil
    void sg_open(int *gate) noexcept nogil
    void sg_pass(const int *gate) noexcept nogil
    void sg_write_barrier() noexcept nogil
    void *sg_take_memory(size_t bytes) noexcept nogil
    void sg_give_memory(void *made, size_t bytes) noexcept nogil
    void *sg_map_file(int file, size_t bytes) noexcept nogil
    void sg_unmap(void *made, size_t bytes) noexcept nogil

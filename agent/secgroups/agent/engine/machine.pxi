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

    #define sg_prefetch(address) __builtin_prefetch((address), 1, 3)
    #define sg_likely(x) __builtin_expect(!!(x), 1)
    #define sg_unlikely(x) __builtin_expect(!!(x), 0)

    static inline uint64_t sg_fold(uint64_t a, uint64_t b) {
        __uint128_t product = (__uint128_t)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    /* A bit for each of the first 15 words of a chunk whose upper bits, from shift on, are tag. */
    typedef uint32_t sg_words __attribute__((vector_size(16)));
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline uint32_t sg_match(const uint32_t *chunk, int shift, uint32_t tag) {
        const __m128i *words = (const __m128i *)chunk;
        __m128i wanted = _mm_set1_epi32((int)tag), count = _mm_cvtsi32_si128(shift);
        __m128i a = _mm_cmpeq_epi32(_mm_srl_epi32(_mm_load_si128(words), count), wanted);
        __m128i b = _mm_cmpeq_epi32(_mm_srl_epi32(_mm_load_si128(words + 1), count), wanted);
        __m128i c = _mm_cmpeq_epi32(_mm_srl_epi32(_mm_load_si128(words + 2), count), wanted);
        __m128i d = _mm_cmpeq_epi32(_mm_srl_epi32(_mm_load_si128(words + 3), count), wanted);
        __m128i all = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
        return (uint32_t)_mm_movemask_epi8(all) & 0x7fff;
    }
    #else
    static inline uint32_t sg_match(const uint32_t *chunk, int shift, uint32_t tag) {
        uint32_t found = 0;
        for (int at = 0; at < 15; at++) found |= (uint32_t)((chunk[at] >> shift) == tag) << at;
        return found;
    }
    #endif

    static inline uint64_t sg_word(const void *at) { uint64_t word; memcpy(&word, at, 8); return word; }
    static inline uint32_t sg_half_word(const void *at) { uint32_t word; memcpy(&word, at, 4); return word; }
    static inline uint32_t sg_rotate16(uint32_t word) { return word << 16 | word >> 16; }
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
    static inline void *sg_map_file(int file, size_t bytes) {
        void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (made == MAP_FAILED) return NULL;
        madvise(made, bytes, MADV_HUGEPAGE);
        return made;
    }
    static inline void sg_unmap(void *made, size_t bytes) { munmap(made, bytes); }
    #ifdef SECGROUPS_CHECKED
    #define sg_checked 1
    #else
    #define sg_checked 0
    #endif
    """
    const int sg_checked
    void sg_prefetch(const void *address) noexcept nogil
    bint sg_likely(bint x) noexcept nogil
    bint sg_unlikely(bint x) noexcept nogil
    uint64_t sg_fold(uint64_t a, uint64_t b) noexcept nogil
    uint32_t sg_match(const uint32_t *chunk, int shift, uint32_t tag) noexcept nogil
    uint64_t sg_word(const void *at) noexcept nogil
    uint32_t sg_half_word(const void *at) noexcept nogil
    uint32_t sg_rotate16(uint32_t word) noexcept nogil
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

/* The yardstick of scripts/bench verdict: how fast this machine reads random cache lines of a table, told in advance which.
 *
 * memory_limit ENTRIES READS: prints nanoseconds for one 64-byte read. Reads come in batches of 256 whose lines are asked for before
 * the first is read, as the engine does; the order is random and known beforehand. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define BATCH 256

static uint64_t state = 88172645463325252ull;
static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    size_t entries = strtoull(argv[1], NULL, 10), reads = strtoull(argv[2], NULL, 10) / BATCH * BATCH;
    uint64_t(*table)[8] = mmap(NULL, entries * 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *order = malloc(reads * sizeof *order);
    if (table == MAP_FAILED || !order) return 1;
    madvise(table, entries * 64, MADV_HUGEPAGE);
    memset(table, 1, entries * 64);
    for (size_t at = 0; at < reads; at++) order[at] = (uint32_t)(next_random() % entries);
    struct timespec begun, ended;
    uint64_t sum = 0;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (size_t at = 0; at < reads; at += BATCH) {
        for (size_t i = 0; i < BATCH; i++) __builtin_prefetch(table[order[at + i]]);
        for (size_t i = 0; i < BATCH; i++)
            for (size_t word = 0; word < 8; word++) sum += table[order[at + i]][word];
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double ns = (ended.tv_sec - begun.tv_sec) * 1e9 + (ended.tv_nsec - begun.tv_nsec);
    printf("%.3f %llu\n", ns / reads, (unsigned long long)sum);
    return 0;
}

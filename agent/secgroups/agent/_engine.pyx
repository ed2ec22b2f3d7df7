# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, binding=False
"""The compiled engine: flow tables, compiled rules and verdicts. ``compiled.py`` says what changes, this is what packets meet.

Everything here is called with the interpreter's lock held. Verdicts give it up for a batch; each shard of servers has a lock of its
own, so threads meet only where their servers do. What changes rules holds all of them, for as long as a change takes.

On a packet's way nothing is allocated, nothing raises and no Python object is touched.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset

from secgroups.agent.flow import Packet, Reason, Verdict
from secgroups.agent.records import check_buffers, check_times

include "engine/machine.pxi"
include "engine/layout.pxi"

cdef uint64_t FRAGMENT_KEPT_NS = 30_000_000_000
# Twice the longest of the time-outs.
cdef uint64_t LONGEST_NS = 864_000_000_000_000

include "engine/indexes.pxi"
include "engine/bundles.pxi"
include "engine/labels.pxi"
include "engine/policy.pxi"
include "engine/table.pxi"
include "engine/fragments.pxi"
include "engine/taps.pxi"
include "engine/plain.pxi"
include "engine/screening.pxi"
include "engine/judge.pxi"
include "engine/batch.pxi"
include "engine/packing.pxi"
include "engine/checks.pxi"

RECORD_BYTES = sizeof(Record)
QUOTE_BYTES = sizeof(Quote)
VERDICT_BYTES = sizeof(PackedVerdict)
CHECKED = bool(sg_checked)
# What a flow takes, both directions, with everything that is kept for it.
FLOW_BYTES = sizeof(Flow) + sizeof(Links) + sizeof(Highs) + sizeof(uint32_t) + CHUNK_WORDS * sizeof(uint32_t) / float(CHUNK_FILL)

cdef list REASON_OF = [None] * REASONS
for _reason in Reason:
    REASON_OF[_reason] = _reason


include "engine/kept.pxi"
include "engine/shards.pxi"


cdef int with_verdicts(Py_buffer *asked, records, verdicts, quotes, Py_buffer *answers, Py_buffer *quoted) except -1:
    """Take the other two buffers of a batch; ValueError if the three do not fit each other."""
    try:
        PyObject_GetBuffer(verdicts, answers, PyBUF_WRITABLE)
    except BufferError:
        check_buffers(records, verdicts, quotes)
        raise
    try:
        PyObject_GetBuffer(quotes, quoted, PyBUF_SIMPLE)
    except BufferError:
        PyBuffer_Release(answers)
        check_buffers(records, verdicts, quotes)
        raise
    if (
        asked.len % sizeof(Record)
        or quoted.len % sizeof(Quote)
        or answers.len != asked.len // <Py_ssize_t>sizeof(Record) * <Py_ssize_t>sizeof(PackedVerdict)
    ):
        PyBuffer_Release(answers)
        PyBuffer_Release(quoted)
        check_buffers(records, verdicts, quotes)
    return 0


cdef uint32_t flows_of_shard(uint32_t whole, uint32_t shards) noexcept:
    return max(4, whole // shards)


def file_bytes(uint32_t flows_max, uint32_t fragments_max, uint32_t shards) -> int:
    """Return the size of the file that a table of these bounds is kept in."""
    return FILE_HEADER_BYTES + EPOCHS_BYTES + shards * kept_bytes(
        flows_of_shard(flows_max, shards), flows_of_shard(fragments_max, shards)
    )


# Sizes and places in a file: one that has others is of another program.
LAYOUT = (FILE_HEADER_BYTES, FILE_MARK_AT, EPOCHS_BYTES, sizeof(Flow), sizeof(Highs), sizeof(FirstFragment))


cdef inline int take_lock(int *lock) noexcept:
    """Lock with the interpreter's lock held, which is given up if that takes a while: a change holds both, and needs it to go on."""
    if not sg_try_lock(lock):
        with nogil:
            sg_lock(lock)
    return 0


cdef int with_times(times, uint64_t now_ns, Py_ssize_t count, Py_buffer *timed) except -1:
    """Take the times of ``count`` records; ValueError if they are not as many or one is before the one before it."""
    cdef const uint64_t *moments
    cdef uint64_t last = now_ns
    cdef Py_ssize_t at
    cdef bint goes_back = False
    try:
        PyObject_GetBuffer(times, timed, PyBUF_SIMPLE)
    except BufferError:
        check_times(times, now_ns, count)
        raise
    moments = <const uint64_t *>timed.buf
    if timed.len == count * <Py_ssize_t>sizeof(uint64_t):
        for at in range(count):
            goes_back |= moments[at] < last
            last = moments[at]
        if not goes_back:
            return 0
    PyBuffer_Release(timed)
    check_times(times, now_ns, count)
    raise ValueError("times changed while they were read")


cdef inline uint32_t recent_of(uint64_t verdict) noexcept:
    """Return where the object of a packed verdict was kept, if it was asked for lately: by its rule and reason."""
    return <uint32_t>(verdict >> 32 ^ verdict >> 8) & (RECENT - 1)


cdef str describe(packet):
    return f"{len(packet)} bytes" if isinstance(packet, bytes) else f"a {type(packet).__name__}"


cdef class Core:
    """Tables and rules by number. Methods that change rules want ``lock`` held around all of a change.

    Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d. Numbers that are not in use are the caller's mistake, and are not checked
    but in the checked build. ``handles`` are those of servers by name, ``rule_ids`` the ids of rules by number, ``numbers`` the
    numbers of rules by handle: the caller fills them in.
    """

    cdef Engine engine
    cdef dict _verdicts
    cdef uint64_t _recent_keys[RECENT]
    cdef PyObject *_recent[RECENT]
    cdef readonly dict handles
    cdef readonly dict rule_ids
    cdef readonly dict numbers
    cdef readonly dict strangers
    cdef uint32_t _last_stranger

    def __cinit__(
        self, *, flows_max: int, server_flows_max: int, fragments_max: int, shards: int, seed: bytes, tables: dict, file: int = -1
    ):
        """Take all memory. ``seed`` has 8 words of 8 bytes; ``tables`` are the contract's: states, time-outs, kinds of ICMP.

        ``file`` is a descriptor of a file of ``file_bytes`` bytes, in which flows and fragments are then kept.
        """
        cdef Engine *engine = &self.engine
        cdef uint32_t at
        memset(engine, 0, sizeof(Engine))
        self._verdicts = {}
        self.handles = {}
        self.rule_ids = {}
        self.numbers = {}
        self.strangers = {}
        engine.server_flows_max = server_flows_max
        fill_tables(engine, tables)
        begin_rules(engine)
        begin_pool(&engine.endpoint_pool, sizeof(Endpoint))
        begin_index(&engine.endpoint_index)
        memcpy(engine.seed, PyBytes_AS_STRING(seed) + 48, 16)
        engine.shards = <Shard *>calloc(shards, sizeof(Shard))
        if engine.shards == NULL:
            raise MemoryError
        engine.shards_count = shards
        if file >= 0:
            engine.file_bytes = file_bytes(flows_max, fragments_max, shards)
            engine.file = <char *>sg_map_file(file, engine.file_bytes)
            if engine.file == NULL:
                raise MemoryError("the file of the flow table can't be mapped")
            engine.epochs = <uint32_t *>(engine.file + FILE_HEADER_BYTES)
        for at in range(engine.shards_count):
            memcpy(engine.shards[at].seed, PyBytes_AS_STRING(seed), 48)
            begin_shard(engine, &engine.shards[at], at, flows_of_shard(flows_max, shards), flows_of_shard(fragments_max, shards))
        grow_rules(engine, 64)

    def __dealloc__(self):
        cdef uint32_t at
        for at in range(self.engine.shards_count):
            end_shard(&self.engine, &self.engine.shards[at])
        free(self.engine.shards)
        end_rules(&self.engine)
        free(self.engine.endpoint_pool.items)
        end_index(&self.engine.endpoint_index)
        free(self.engine.rules)
        free(self.engine.servers)
        if self.engine.file != NULL:
            sg_unmap(self.engine.file, self.engine.file_bytes)
        for at in range(TAPS_MAX):
            free(self.engine.taps[at].events)

    # -------------------------------------------------------------------------------------------- changes

    def lock(self):
        """Keep every shard from deciding until ``unlock``."""
        cdef uint32_t at
        with nogil:
            sg_shut(&self.engine.gate)
            for at in range(self.engine.shards_count):
                sg_lock(&self.engine.shards[at].lock)

    def unlock(self):
        cdef uint32_t at
        for at in range(self.engine.shards_count):
            sg_unlock(&self.engine.shards[at].lock)
        sg_open(&self.engine.gate)

    def set_essential_services(self, bint wanted):
        self.engine.essential_services = wanted

    def set_loose_until(self, uint64_t until_ns):
        self.engine.loose_until_ns = until_ns

    def set_servers_count(self, uint32_t shard, uint32_t count):
        """Say how many servers of a shard are guarded."""
        self.engine.shards[shard].servers = count

    def grow_rules(self, uint32_t room):
        """Have room for rules numbered below ``room``."""
        grow_rules(&self.engine, room)

    def grow_servers(self, uint32_t room):
        """Have room for servers numbered below ``room``."""
        grow_servers(&self.engine, room)

    def set_server(self, uint32_t number, uint32_t generation, uint8_t standing, uint32_t policy, uint32_t epoch):
        """Standing is 0 absent, 1 without ruleset, 2 in force; the policy counts for 2 only."""
        cdef Server *server = &self.engine.servers[number]
        server.generation, server.standing, server.policy, server.epoch = generation, standing, policy, epoch
        if self.engine.epochs != NULL:
            self.engine.epochs[number] = epoch
        server.plain_handle = generation << HANDLE_INDEX_BITS | number if standing == SERVER_IN_FORCE and not server.has_odd else NIL

    def deny_all(self):
        """No server has a ruleset any more: nothing is judged by rules that may be half of what they should be. Takes no memory."""
        cdef uint32_t at
        for at in range(self.engine.servers_used):
            if self.engine.servers[at].standing == SERVER_IN_FORCE:
                self.engine.servers[at].standing = SERVER_WITHOUT_RULESET
            self.engine.servers[at].plain_handle = NIL

    def forget_server(self, uint32_t number):
        """A server that is absent has no endpoints any more; its number may be another one's."""
        self.engine.servers[number].has_more = self.engine.servers[number].has_odd = 0

    def set_name_order(self, uint32_t number, uint32_t order):
        self.engine.servers[number].name_order = order

    def add_endpoint(self, uint32_t server, bytes address) -> int:
        """Give a server an address."""
        return add_endpoint(&self.engine, server, word_of(address, 0), word_of(address, 8))

    def remove_endpoint(self, uint32_t endpoint):
        """Take an address from its server; ``sweep`` then takes its flows and its number."""
        remove_endpoint(&self.engine, endpoint)

    def sweep(self, list endpoints) -> int:
        """Drop all flows of these endpoints, which were removed, and return how many. Without ``lock``: it locks in small steps."""
        cdef uint32_t number, gone = 0
        cdef uint64_t left
        for number in range(self.engine.shards_count):
            left = 0
            for endpoint in endpoints:
                if self.engine.endpoints[<uint32_t>endpoint].server % self.engine.shards_count == number:
                    left += self.engine.endpoints[<uint32_t>endpoint].flows
            gone += self._sweep(&self.engine.shards[number], left)
        for endpoint in endpoints:
            give_item(&self.engine.endpoint_pool, endpoint)
        return gone

    cdef uint32_t _sweep(self, Shard *shard, uint64_t left) except? 0xFFFFFFFF:
        """Drop the flows of all endpoints that were removed, of which there are at most ``left``."""
        cdef uint32_t at = 0, end, gone = 0
        with nogil:
            while at < shard.never_used and gone < left:
                sg_shut(&self.engine.gate)
                sg_lock(&shard.lock)
                sg_open(&self.engine.gate)
                end = min(at + STEP, shard.never_used)
                while at < end:
                    if shard.flows[at].status and not self.engine.endpoints[shard.flows[at].endpoint].is_held:
                        release_entry(&self.engine, shard, at)
                        gone += 1
                    at += 1
                sg_unlock_for_others(&shard.lock)
        return gone

    def forget_fragments(self, uint32_t handle):
        """Forget the first fragments of a server. Without ``lock``."""
        cdef Shard *shard = &self.engine.shards[(handle & HANDLE_INDEX_MASK) % self.engine.shards_count]
        cdef uint32_t at
        with nogil:
            sg_lock(&shard.lock)
            for at in range(shard.fragments_max):
                if shard.fragments[at].is_held and shard.fragments[at].server == handle:
                    forget_fragment(shard, at)
            sg_unlock(&shard.lock)

    def set_rule(
        self, uint32_t number, uint32_t handle, object rank, uint32_t label, uint16_t protocol, uint16_t first, uint16_t last,
        uint8_t direction,
    ):
        """Write a rule; protocol 256 is any, ``first`` and ``last`` are ports, or type * 256 + code for ICMP."""
        cdef Rule *rule = &self.engine.rules[number]
        rule.rank, rule.label, rule.protocol, rule.first, rule.last = rank, label, protocol, first, last
        rule.direction, rule.is_in_force = direction, 1
        self.set_handle(number, handle)

    def set_handle(self, uint32_t number, uint32_t handle):
        """Say what packed verdicts call a rule, in force or gone."""
        cdef uint32_t at
        for at in range(self.engine.shards_count):
            self.engine.shards[at].rules[number].handle = handle

    def set_rank(self, uint32_t number, object rank):
        self.engine.rules[number].rank = rank

    def end_rule(self, uint32_t number):
        """A rule is no longer in force; its counts are gone, its number is free when ``rule_users`` is 0."""
        cdef uint32_t at
        self.engine.rules[number].is_in_force = 0
        for at in range(self.engine.shards_count):
            self.engine.shards[at].rules[number].packets = 0
            self.engine.shards[at].rules[number].bytes = 0
            self.engine.shards[at].rules[number].flows = 0

    def rule_users(self, uint32_t number) -> int:
        cdef uint32_t at
        cdef uint64_t users = 0
        for at in range(self.engine.shards_count):
            users += self.engine.shards[at].rules[number].users
        return users

    def rule_counts(self) -> list[tuple[int, int, int, int]]:
        """Return number, packets, bytes and flows opened of each rule in force that let something through."""
        cdef uint32_t number, at
        cdef uint64_t packets, total, flows
        cdef const RuleCounts *counts
        cdef list found = []
        for number in range(1, self.engine.rules_room):
            if not self.engine.rules[number].is_in_force:
                continue
            packets = total = flows = 0
            for at in range(self.engine.shards_count):
                counts = &self.engine.shards[at].rules[number]
                packets, total, flows = packets + counts.packets, total + counts.bytes, flows + counts.flows
            if packets:
                found.append((number, packets, total, flows))
        return found

    def add_policy(self) -> int:
        return add_policy(&self.engine)

    def remove_policy(self, uint32_t policy):
        """The policy has no rules any more."""
        give_item(&self.engine.policy_pool, policy)

    def change_policy(self, uint32_t policy, list removed, list added):
        """Rules leave and join a policy."""
        change_policy(&self.engine, policy, removed, added)

    def empty_policy(self, uint32_t policy, list rules):
        """Take these rules out of a policy that nothing is judged by any more, and all that share their labels."""
        empty_policy(&self.engine, policy, rules)

    def reset_rules(self):
        """Drop policies, networks and members; servers, endpoints and the numbers of rules stay."""
        self.lock()
        try:
            end_rules(&self.engine)
            begin_rules(&self.engine)
        finally:
            self.unlock()

    def add_member(self, bytes address, uint32_t label):
        add_member(&self.engine, word_of(address, 0), word_of(address, 8), label)

    def remove_member(self, bytes address, uint32_t label):
        remove_member(&self.engine, word_of(address, 0), word_of(address, 8), label)

    def add_prefix(self, uint64_t high, uint64_t low, int length, bint is_ipv4, uint32_t label) -> int:
        """Add a network that is not held; an IPv4 address is a number in ``low``."""
        return add_prefix(&self.engine, high, low, length, is_ipv4, label)

    def remove_prefix(self, uint32_t number):
        remove_prefix(&self.engine, number)

    def forget_verdicts(self):
        """Rule numbers may mean something else from now on."""
        memset(self._recent_keys, 0, sizeof(self._recent_keys))
        self._verdicts.clear()

    # -------------------------------------------------------------------------------------------- verdicts

    def decide(self, packet, uint64_t now_ns, /):
        """Return the verdict for a Packet, or for a record of 64 bytes, and track the flow if it is allowed."""
        cdef Record record
        cdef Quote quote
        cdef const Record *asked = &record
        cdef Shard *shard
        cdef Engine *engine = &self.engine
        cdef PackedVerdict verdict
        cdef uint64_t key
        if PyBytes_CheckExact(packet) and PyBytes_GET_SIZE(packet) == sizeof(Record):
            asked = <const Record *>PyBytes_AS_STRING(packet)
            record.quote = 0
        elif isinstance(packet, Packet):
            pack(packet, self._handle(packet), &record, &quote)
        else:
            raise TypeError(f"decide takes a Packet or a record of {sizeof(Record)} bytes, not {describe(packet)}")
        shard = &engine.shards[0]
        if engine.shards_count > 1:
            shard = &engine.shards[(asked.server & HANDLE_INDEX_MASK) % engine.shards_count]
        take_lock(&shard.lock)
        decide_one(engine, shard, asked, &quote, record.quote, now_ns, &verdict)
        sg_unlock(&shard.lock)
        # Its halves, as they were written: to read both at once would have to wait until they are in the cache.
        key = <uint64_t>verdict.rule << 32 | sg_half_word(&verdict)
        if sg_likely(self._recent_keys[recent_of(key)] == key):
            return <object>self._recent[recent_of(key)]
        made = self._verdict(verdict.reason, verdict.flags, verdict.rule)
        # Kept alive by the dict.
        self._recent_keys[recent_of(key)], self._recent[recent_of(key)] = key, <PyObject *>made
        return made

    cdef uint32_t _handle(self, packet) except? 0xFFFFFFFF:
        handle = self.handles.get(packet.server)
        if handle is not None:
            return handle
        return self._note_stranger(packet.server) if self.engine.taps_open else HANDLE_INDEX_MASK

    cdef uint32_t _note_stranger(self, name) except? 0xFFFFFFFF:
        """Return a handle that no server has, for whoever watches to tell the name by. The oldest are forgotten."""
        self._last_stranger = (self._last_stranger + 1) % HANDLE_INDEX_MASK
        self.strangers[self._last_stranger] = name
        if len(self.strangers) > STRANGERS_MAX:
            del self.strangers[next(iter(self.strangers))]
        return self._last_stranger

    cdef object _verdict(self, uint8_t reason, uint8_t flags, uint32_t handle):
        """Return the one Verdict that there is for these."""
        cdef uint64_t key = (<uint64_t>handle << 8) | (flags << 6) | reason
        made = self._verdicts.get(key)
        if made is None:
            made = Verdict(reason=REASON_OF[reason], rule_id=self.rule_ids[self.numbers[handle]] if handle else "", opened=bool(flags))
            self._verdicts[key] = made
        return made

    def explain(self, packet, uint64_t now_ns) -> tuple[Verdict, int, int, int]:
        """Return what ``decide`` would: the verdict, the row, the rule's number, the status of the flow or 0. Changes nothing."""
        cdef Record record
        cdef Quote quote
        cdef Case case
        cdef Shard *shard
        cdef Flow copy
        copy.status = 0
        case.record = &record
        pack(packet, self._handle(packet), &record, &quote)
        shard = &self.engine.shards[(record.server & HANDLE_INDEX_MASK) % self.engine.shards_count]
        take_lock(&shard.lock)
        prepare(&self.engine, &case, &quote, record.quote)
        if case.kind == KIND_KEYED:
            case.hash = hash_of(shard, &case.key)
        if case.kind != KIND_DECIDED:
            conclude(&self.engine, shard, &case, now_ns, &copy)
        sg_unlock(&shard.lock)
        handle = shard.rules[case.rule].handle if case.rule else 0
        return self._verdict(case.reason, case.opened, handle), case.step, case.rule, copy.status

    def pack(self, packet) -> tuple[bytes, bytes]:
        """Return the record of a Packet and its quote, empty if it has none."""
        cdef Record record
        cdef Quote quote
        pack(packet, self._handle(packet), &record, &quote)
        return (
            PyBytes_FromStringAndSize(<char *>&record, sizeof(Record)),
            PyBytes_FromStringAndSize(<char *>&quote, sizeof(Quote)) if record.quote else b"",
        )

    def decide_many(self, records, uint64_t now_ns, verdicts, quotes=b"", times=None):
        """Write a verdict of 8 bytes for each record of 64; ValueError if the sizes don't match or a time goes back."""
        cdef Py_buffer asked, answers, quoted, timed
        cdef Py_ssize_t count
        cdef const uint64_t *moments = NULL
        try:
            PyObject_GetBuffer(records, &asked, PyBUF_SIMPLE)
        except BufferError:
            check_buffers(records, verdicts, quotes)
            raise
        try:
            with_verdicts(&asked, records, verdicts, quotes, &answers, &quoted)
            try:
                count = asked.len // sizeof(Record)
                if times is not None:
                    with_times(times, now_ns, count, &timed)
                    moments = <const uint64_t *>timed.buf
                with nogil:
                    decide_all(
                        &self.engine, <const Record *>asked.buf, count, <const Quote *>quoted.buf,
                        <uint32_t>(quoted.len // sizeof(Quote)), now_ns, moments, <PackedVerdict *>answers.buf,
                    )
            finally:
                if moments != NULL:
                    PyBuffer_Release(&timed)
                PyBuffer_Release(&quoted)
                PyBuffer_Release(&answers)
        finally:
            PyBuffer_Release(&asked)

    def handles_in(self, verdicts) -> set[int]:
        """Return the rule handles in a buffer of verdicts."""
        cdef Py_buffer given
        cdef set found = set()
        cdef uint32_t last = 0, handle
        cdef Py_ssize_t at
        PyObject_GetBuffer(verdicts, &given, PyBUF_SIMPLE)
        try:
            for at in range(given.len // <Py_ssize_t>sizeof(PackedVerdict)):
                handle = (<const PackedVerdict *>given.buf)[at].rule
                if handle and handle != last:
                    found.add(handle)
                    last = handle
        finally:
            PyBuffer_Release(&given)
        return found

    # -------------------------------------------------------------------------------------------- taps

    def open_tap(self, uint32_t room, uint32_t one_in, bint with_allowed) -> int:
        """Return the number of a new tap, -1 if there is none left."""
        cdef uint32_t at
        cdef Tap *tap
        for at in range(TAPS_MAX):
            tap = &self.engine.taps[at]
            if tap.is_open or tap.events != NULL:
                continue
            tap.events = <TapEvent *>malloc(<size_t>room * sizeof(TapEvent))
            if tap.events == NULL:
                raise MemoryError
            tap.first = tap.count = tap.passing = 0
            tap.dropped = 0
            tap.room, tap.one_in, tap.with_allowed = room, one_in, with_allowed
            self._switch_tap(at, True)
            return at
        return -1

    def read_tap(self, int number, uint32_t most) -> list[tuple[int, bytes, bytes, bytes]]:
        """Return time, record, quote and verdict of the oldest events."""
        return read_tap(&self.engine.taps[number], most)

    def tap_dropped(self, int number) -> int:
        return self.engine.taps[number].dropped

    def close_tap(self, int number):
        """Nothing more is taken, and what is held is gone."""
        cdef Tap *tap = &self.engine.taps[number]
        self._switch_tap(number, False)
        free(tap.events)
        tap.events = NULL

    cdef int _switch_tap(self, int number, bint is_open) except -1:
        self.lock()
        self.engine.taps[number].is_open = is_open
        self.engine.taps_open += 1 if is_open else -1
        self.unlock()
        return 0

    # -------------------------------------------------------------------------------------------- a table in a file

    def mark(self, bytes mark):
        """Say in the file what the flows were judged against: 32 bytes."""
        if self.engine.file != NULL:
            memcpy(self.engine.file + FILE_MARK_AT, PyBytes_AS_STRING(mark), MARK_BYTES)

    def saved_mark(self) -> bytes:
        return PyBytes_FromStringAndSize(self.engine.file + FILE_MARK_AT, MARK_BYTES)

    def saved_epoch(self, uint32_t server) -> int:
        """Return the epoch that a server was in when the file was left."""
        return self.engine.epochs[server]

    def keep_endpoints(self, dict endpoints):
        """Have these endpoints, by number (server, address), as they were; those below the highest of them are free otherwise."""
        cdef Pool *pool = &self.engine.endpoint_pool
        cdef uint32_t number, end = max(endpoints, default=-1) + 1
        for number in range(end):
            take_item(pool)
        self.engine.endpoints = <Endpoint *>pool.items
        for number, (server, address) in endpoints.items():
            hold_endpoint(&self.engine, number, server, word_of(address, 0), word_of(address, 8))
        for number in reversed(range(end)):
            if number not in endpoints:
                give_item(pool, number)

    def keep(self, uint64_t now_ns) -> int:
        """Go on with the flows and fragments in the file; return how many live flows made no sense, or had no room, and were dropped."""
        cdef uint32_t at
        cdef uint64_t dropped = 0
        for at in range(self.engine.shards_count):
            keep_flows(&self.engine, &self.engine.shards[at], at, now_ns, &dropped)
            keep_shares(&self.engine, &self.engine.shards[at], at, now_ns, &dropped)
            keep_fragments(&self.engine, &self.engine.shards[at], now_ns)
        return dropped

    # -------------------------------------------------------------------------------------------- a look inside

    def figures(self) -> dict[str, object]:
        """Return sums over all shards: entries, fragments, reasons, evicted_unanswered, evicted_answered, expired."""
        cdef uint32_t at
        cdef int reason
        cdef dict sums = {"entries": 0, "fragments": 0, "evicted_unanswered": 0, "evicted_answered": 0, "expired": 0}
        cdef list reasons = [0] * REASONS
        cdef Shard *shard
        for at in range(self.engine.shards_count):
            shard = &self.engine.shards[at]
            sums["entries"] += shard.count
            sums["fragments"] += shard.fragments_count
            sums["evicted_unanswered"] += shard.evicted_unanswered
            sums["evicted_answered"] += shard.evicted_answered
            sums["expired"] += shard.expired
            for reason in range(REASONS):
                reasons[reason] += shard.reasons[reason]
        sums["reasons"] = reasons
        return sums

    def begin_counting(self):
        """Set all counters to zero."""
        cdef uint32_t at, number
        cdef Shard *shard
        for at in range(self.engine.shards_count):
            shard = &self.engine.shards[at]
            shard.evicted_unanswered = shard.evicted_answered = shard.expired = 0
            memset(shard.reasons, 0, sizeof(shard.reasons))
            for number in range(self.engine.rules_room):
                shard.rules[number].packets = shard.rules[number].bytes = shard.rules[number].flows = 0

    def check(self, uint64_t now_ns) -> list[str]:
        """Return what is not as it must be in tables and rules, nothing if all is well. For tests: it takes its time."""
        cdef uint32_t at, number
        cdef Faults faults = Faults()
        cdef list endpoint_flows = [0] * self.engine.endpoint_pool.used, server_flows = [0] * self.engine.servers_used, users
        self.lock()
        try:
            for number in range(self.engine.shards_count):
                users = [0] * self.engine.rules_room
                check_flows(&self.engine, number, faults, endpoint_flows, server_flows, users)
                check_index(&self.engine, &self.engine.shards[number], faults)
                check_wheel(&self.engine.shards[number], now_ns, faults)
                check_lines(&self.engine, number, faults)
                check_fragments(&self.engine.shards[number], faults)
                for at in range(1, self.engine.rules_room):
                    faults.unless(self.engine.shards[number].rules[at].users == users[at], "users of rule", at)
            for at in range(self.engine.servers_used):
                faults.unless(self.engine.servers[at].flows == server_flows[at], "flows of server", at)
            for at in range(self.engine.endpoint_pool.used):
                # Of a free endpoint nothing counts; the rest of its item is zero.
                faults.unless(self.engine.endpoints[at].flows == endpoint_flows[at], "flows of endpoint", at)
            check_rules(&self.engine, faults)
        finally:
            self.unlock()
        return faults.found

    def count_states(self, uint32_t shard_number, uint32_t start, uint64_t now_ns) -> tuple[int, list[int]]:
        """Return where to go on (0: at the end) and how many of STEP entries from ``start`` are live flows in each state.

        [0] are those revoked. Without ``lock``.
        """
        cdef Shard *shard = &self.engine.shards[shard_number]
        cdef uint32_t at, end
        cdef bint is_last
        cdef uint32_t counts[16]
        cdef const Flow *flow
        memset(counts, 0, sizeof(counts))
        with nogil:
            sg_shut(&self.engine.gate)
            sg_lock(&shard.lock)
            sg_open(&self.engine.gate)
            end = min(start + STEP, shard.never_used)
            for at in range(start, end):
                flow = &shard.flows[at]
                if flow.status and flow.deadline_ns > now_ns:
                    counts[0 if flow.status & FLAG_REVOKED else flow.status & STATE_MASK] += 1
            is_last = end == shard.never_used
            sg_unlock(&shard.lock)
        return (0 if is_last else end), [counts[at] for at in range(16)]

    def adopt(self, Core other, uint32_t shard_number, uint32_t place, uint32_t endpoint, uint64_t now_ns):
        """Take over a flow of another core, whose rules have the same numbers here; ``endpoint`` is here. There must be room."""
        cdef Shard *theirs = &other.engine.shards[shard_number]
        cdef uint32_t server = self.engine.endpoints[endpoint].server, made
        cdef Shard *shard = &self.engine.shards[server % self.engine.shards_count]
        made = take_entry(shard)
        shard.flows[made], shard.highs[made], shard.opened[made] = theirs.flows[place], theirs.highs[place], theirs.opened[place]
        shard.flows[made].endpoint = endpoint
        link_entry(&self.engine, shard, made, now_ns)
        stand_in_line(shard, &self.engine.servers[server], made)

    def adopt_fragments(self, Core other):
        """Take over the first fragments of another core whose servers and rules have the same numbers; the oldest go if need be."""
        cdef Shard *theirs
        cdef Shard *shard
        cdef FirstFragment *held
        cdef uint32_t number, place, made
        cdef list found = []
        for number in range(other.engine.shards_count):
            theirs = &other.engine.shards[number]
            place = theirs.fragments_oldest
            while place != NIL:
                found.append((theirs.fragments[place].deadline_ns, number, place))
                place = theirs.fragments[place].newer
        # They are in order of age within a shard, and a sort leaves those of equal age as they are.
        found.sort(key=lambda each: each[0])
        for _, number, place in found:
            held = &other.engine.shards[number].fragments[place]
            shard = &self.engine.shards[(held.server & HANDLE_INDEX_MASK) % self.engine.shards_count]
            made = take_fragment(shard)
            shard.fragments[made] = held[0]
            link_fragment(shard, made, bucket_of_held(shard, held))

    def server_flows(self, uint32_t number) -> int:
        """Return how many entries a server has taken."""
        return self.engine.servers[number].flows

    def endpoint_server(self, uint32_t number) -> int:
        return self.engine.endpoints[number].server

    def page(
        self, uint32_t shard_number, uint32_t start, uint64_t now_ns, int64_t server=-1, int state=0, int port=-1
    ) -> tuple[int, list[tuple[object, ...]]]:
        """Return where to go on (0: at the end) and the wanted live flows among PAGE entries from ``start``, all of one moment.

        Wanted are those of the server with this number, in this state (16: revoked), whose opening packet went to this port.
        """
        cdef Shard *shard = &self.engine.shards[shard_number]
        cdef list found = []
        cdef uint32_t at, end
        cdef Flow flows[PAGE]
        cdef Highs highs[PAGE]
        cdef uint32_t opened[PAGE]
        cdef Flow *flow
        cdef Highs *high
        cdef uint64_t now_seen = now_ns >> SEEN_SHIFT, now_opened = now_ns >> OPENED_SHIFT
        # A change may go on while this waits for the lock, but none until what is read then has been told.
        take_lock(&shard.lock)
        end = min(start + PAGE, shard.never_used)
        for at in range(start, end):
            flows[at - start], highs[at - start], opened[at - start] = shard.flows[at], shard.highs[at], shard.opened[at]
        sg_unlock(&shard.lock)
        for at in range(end - start):
            flow, high = &flows[at], &highs[at]
            if not flow.status or flow.deadline_ns <= now_ns:
                continue
            if server >= 0 and self.engine.endpoints[flow.endpoint].server != server:
                continue
            if state and state != (16 if flow.status & FLAG_REVOKED else flow.status & STATE_MASK):
                continue
            if port >= 0 and port != (flow.local_port if flow.status & FLAG_INGRESS else flow.remote_port):
                continue
            found.append((
                start + at, flow.endpoint, flow.protocol, flow.status, flow.local_port, flow.remote_port, flow.icmp_code,
                PyBytes_FromStringAndSize(<char *>flow.remote, 16), flow.deadline_ns, flow.epoch, flow.rule,
                (now_seen - <uint32_t>(<uint32_t>now_seen - flow.seen)) << SEEN_SHIFT,
                (now_opened - <uint32_t>(<uint32_t>now_opened - opened[at])) << OPENED_SHIFT,
                flow.packets[0] + (<uint64_t>high.packets[0] << 32), flow.bytes[0] + (<uint64_t>high.bytes[0] << 32),
                flow.packets[1] + (<uint64_t>high.packets[1] << 32), flow.bytes[1] + (<uint64_t>high.bytes[1] << 32),
            ))
        return (end if end < shard.never_used else 0), found

# What is in memory. Sizes that matter: a flow is one cache line, and with its links, age, upper halves of its counts and its place
# in the index it takes 64 + 16 + 4 + 6 + 64 / 11 < 96 bytes.

cdef enum:
    NIL = 0xFFFFFFFF
    # Of a guess: there is no such flow anywhere.
    NOWHERE = 0xFFFFFFFE
    # Its endpoint is NIL.
    NO_ENDS = 0xFFFFFFFF
    CHUNK_WORDS = 16
    CHUNK_FLOWS = 15
    # Chunks are this full on average when the table is.
    CHUNK_FILL = 11
    WHEEL_SLOTS = 256
    # A deadline further away than this is looked at again then.
    WHEEL_REACH = 250
    # 2**32 ns, 4.3 s.
    WHEEL_SHIFT = 32
    # Times that need not be exact: last seen in 2**20 ns (1 ms), opened in 2**24 ns (17 ms).
    SEEN_SHIFT = 20
    OPENED_SHIFT = 24
    # How many entries whose time may be over are looked at when there is no room, and one more for every 2**12 ns (4 us) since that
    # was last so, up to the most: a flood at a full table is not to make every packet of it dear. And when there is room.
    PURGE_WHEN_FULL = 32
    PURGE_MOST = 256
    PURGE_SHIFT = 12
    PURGE_ALWAYS = 2
    # How many flows of a server are looked at to find one that has been idle for long.
    IDLE_SAMPLE = 32
    # Packets that are judged with the shard locked once, and those that go through a stage together.
    BATCH = 256
    AHEAD = 32
    # Entries that are read at once.
    PAGE = 64
    # Entries that are gone through while a shard is kept from deciding: some 20 us.
    STEP = 4096
    TAPS_MAX = 8
    # Names of servers that are not guarded, which are kept for taps: more than these hold.
    STRANGERS_MAX = 131_072
    # Verdict objects that are found without a dict.
    RECENT = 256
    # More changes of a policy than this at once are made by whole bundles.
    ONE_BY_ONE_MAX = 4
    REASONS = 32
    HANDLE_INDEX_BITS = 20
    HANDLE_INDEX_MASK = 0xFFFFF
    FILE_HEADER_BYTES = 4096
    FILE_MARK_AT = 2048
    MARK_BYTES = 32
    EPOCHS_BYTES = 4 << 20

    LABEL_ANYWHERE = 1
    LABEL_IPV4 = 2
    LABEL_IPV6 = 3
    WHOLE_LABELS = 3

    # Protocol, IP version and direction as they lie in a record: of TCP over IPv4, ingress. For egress one bit changes place.
    SHAPE_MASK = 0xFFFFFF
    SHAPE_TCP = 0x010406
    SHAPE_EGRESS = 0x010000

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132
    ANY_PROTOCOL = 256

    INGRESS = 1
    EGRESS = 2

    FRAGMENT_FIRST = 1
    FRAGMENT_LATER = 2

    # The low four bits of Flow.status are the state, 0 for a free entry.
    STATE_MASK = 0x0F
    FLAG_INGRESS = 0x10
    FLAG_ANSWERED = 0x20
    FLAG_REVOKED = 0x40
    # Not for the short way: packets of it have to be looked at before the table.
    FLAG_ODD = 0x80
    # Of these, the short way is for those that have FLAG_ANSWERED alone.
    QUICK_FLAGS = 0xE0

    STATE_SYN_SENT = 1
    STATE_ESTABLISHED = 4
    STATE_UNANSWERED = 10
    STATE_ANSWERED = 11
    # The row for UDP, behind those for TCP flags.
    QUICK_UDP = 256
    MOVE_IGNORED = 0xFE
    MOVE_INVALID = 0xFF

    SEGMENT_INVALID = 0
    SEGMENT_SYN = 1
    SEGMENT_ACK = 4

    ICMP_IS_ERROR = 1
    ICMP_IS_REQUEST = 2
    ICMP_IS_REPLY = 4
    ICMP_IS_ESSENTIAL_OUT = 8
    ICMP_IS_ESSENTIAL_IN = 16
    ICMP_IS_ROGUE = 32

    SERVER_WITHOUT_RULESET = 1
    SERVER_IN_FORCE = 2

    REASON_NEW = 1
    REASON_ESTABLISHED = 2
    REASON_RELATED = 3
    REASON_ESSENTIAL = 4
    REASON_UNKNOWN_SERVER = 16
    REASON_NO_RULESET = 17
    REASON_INVALID_PACKET = 18
    REASON_ROGUE_SERVICE = 19
    REASON_SPOOFED_SOURCE = 20
    REASON_NOT_LOCAL = 21
    REASON_UNKNOWN_FRAGMENT = 22
    REASON_INVALID_STATE = 23
    REASON_NO_RULE = 24
    REASON_TABLE_FULL = 25
    REASON_REVOKED = 26

ctypedef struct Record:
    uint64_t source[2]
    uint64_t destination[2]
    uint32_t server
    uint16_t source_port
    uint16_t destination_port
    uint8_t protocol
    uint8_t ip_version
    uint8_t direction
    uint8_t tcp_flags
    uint8_t icmp_type
    uint8_t icmp_code
    uint16_t icmp_id
    uint8_t fragment
    uint8_t reserved[3]
    uint32_t fragment_id
    uint32_t length
    uint32_t quote

ctypedef struct Quote:
    uint64_t source[2]
    uint64_t destination[2]
    uint16_t source_port
    uint16_t destination_port
    uint8_t protocol
    uint8_t ip_version
    uint8_t icmp_type
    uint8_t reserved
    uint16_t icmp_id
    uint8_t reserved_too[6]

ctypedef struct PackedVerdict:
    uint8_t action
    uint8_t reason
    uint8_t flags
    uint8_t step
    uint32_t rule

# For ICMP requests local_port is the identifier and remote_port the type.
ctypedef struct Flow:
    uint64_t remote[2]
    uint32_t endpoint
    uint16_t local_port
    uint16_t remote_port
    uint64_t deadline_ns
    uint32_t epoch
    uint32_t rule
    uint32_t seen
    uint8_t protocol
    uint8_t status
    uint8_t icmp_code
    uint8_t wheel
    # The lower halves, [0] of the opener, [1] of the answering end.
    uint32_t packets[2]
    uint32_t bytes[2]

ctypedef struct Highs:
    uint16_t bytes[2]
    uint8_t packets[2]

# For a free entry, wheel_next leads to the next free one. The other two are of the line of its server that the flow stands in.
ctypedef struct Links:
    uint32_t wheel_previous
    uint32_t wheel_next
    uint32_t line_previous
    uint32_t line_next

# Flows of one server; NIL if there are none.
ctypedef struct Line:
    uint32_t first
    uint32_t last

# opened_by is the direction of ICMP requests, 0 for everything else.
ctypedef struct Key:
    uint64_t remote[2]
    uint32_t endpoint
    uint16_t local_port
    uint16_t remote_port
    uint8_t protocol
    uint8_t opened_by

# What rules look at. port is that of the destination, for ICMP type * 256 + code, 0 for protocols that have neither.
ctypedef struct Opening:
    uint64_t remote[2]
    uint16_t port
    uint8_t protocol
    uint8_t direction
    uint8_t is_ipv4

# plain_handle is the handle of a server in force none of whose addresses is an odd one (loopback, multicast, ...), else NIL, which
# no server has.
ctypedef struct Server:
    uint32_t plain_handle
    uint32_t epoch
    uint32_t policy
    uint32_t generation
    uint32_t name_order
    uint32_t flows
    # In the order of their opening.
    Line unanswered
    uint32_t ipv4_endpoint
    uint32_t ipv6_endpoint
    # The second word of the address, whose first is 0; never that of an address if it is 0.
    uint64_t ipv4
    uint64_t ipv6[2]
    uint8_t standing
    # More addresses than the two above; and addresses that nothing should come from.
    uint8_t has_more
    uint8_t has_odd
    # In the order in which they are looked at for a long idle one.
    Line answered

ctypedef struct Endpoint:
    uint64_t address[2]
    uint32_t server
    uint32_t flows
    uint8_t is_held

ctypedef struct FirstFragment:
    uint64_t source[2]
    uint64_t destination[2]
    uint64_t deadline_ns
    uint32_t server
    uint32_t fragment_id
    uint32_t epoch
    uint32_t rule
    uint32_t bucket_next
    uint32_t older
    uint32_t newer
    uint8_t direction
    uint8_t protocol
    uint8_t ip_version
    uint8_t reason
    uint8_t is_held

ctypedef struct RuleCounts:
    uint64_t packets
    uint64_t bytes
    uint64_t flows
    # Flows and fragments that name the rule.
    uint32_t users
    uint32_t handle

ctypedef struct Rule:
    uint64_t rank
    uint32_t label
    uint16_t protocol
    uint16_t first
    uint16_t last
    uint8_t direction
    uint8_t is_in_force

# Disjoint ranges in ascending order, each with the lowest of the rules that cover it.
ctypedef struct Range:
    uint16_t first
    uint16_t last
    uint32_t rule

ctypedef struct Ranges:
    uint32_t count
    uint32_t room
    Range *held

# The rules of one policy and direction whose remote is one label, by protocol; rule 0 is none.
ctypedef struct Bundle:
    uint64_t key
    Ranges tcp
    Ranges udp
    Ranges icmp
    uint32_t any_protocol
    uint32_t others_count
    Other *others
    uint32_t rules_count
    uint32_t rules_room
    uint32_t *rules

ctypedef struct Other:
    uint32_t protocol
    Ranges ranges

# The first and last of all ports that the rules of a bundle name; the first is behind the last if they name none. Most of what does
# not match shows there, before the bundle itself is read.
ctypedef struct Hull:
    uint16_t tcp_first
    uint16_t tcp_last
    uint16_t udp_first
    uint16_t udp_last

# What a policy has for one direction: bundles that need no search, of the labels 1 to 3 (anywhere, all of IPv4, all of IPv6; NIL for
# none), and how many there are of networks and of groups.
ctypedef struct Side:
    uint32_t whole[WHOLE_LABELS]
    Hull hulls[WHOLE_LABELS]
    uint32_t networks
    uint32_t groups

# By direction - 1.
ctypedef struct Policy:
    Side sides[2]

# address is a number: of IPv4 in [1]. longer_than is the longest prefix that covers this one. 0 is no prefix.
ctypedef struct Prefix:
    uint64_t address[2]
    uint32_t longer_than
    uint32_t label
    uint8_t length
    uint8_t is_ipv4
    uint8_t is_held

# IPv4 in three steps: all /16 in an array, those /24 and addresses of which something is known in indexes. Each has the longest
# prefix of its own step (1 to 16, 17 to 24, 25 to 32 bits) that covers it, and how much there is inside.
ctypedef struct Root:
    uint32_t prefix
    uint32_t inside

ctypedef struct Middle:
    uint32_t key
    uint32_t prefix
    uint32_t prefixes
    uint32_t hosts

# groups are the labels of those that the address is a member of.
ctypedef struct Host:
    uint64_t address[2]
    uint32_t prefix
    uint32_t prefixes
    uint32_t groups_count
    uint32_t groups_room
    uint32_t *groups

# hull is for bundles.
ctypedef struct IndexWord:
    uint32_t hash
    uint32_t number
    Hull hull

# What is known of a remote address: the longest prefix that covers it, 0 for none, and its host, NIL for none.
ctypedef struct Remote:
    uint32_t prefix
    uint32_t host

# Open addressing, at most half full; NIL is a free word. What is indexed lies elsewhere. marks has four bits for each word: that of a
# hash is set if something with its lowest bits is indexed, and so most that is not is known not to be without a look at the words.
ctypedef struct Index:
    IndexWord *words
    uint64_t *marks
    uint32_t mask
    uint32_t count

# Items of one size; the first uint32_t of a free one leads to the next free one.
ctypedef struct Pool:
    char *items
    uint32_t item_bytes
    uint32_t used
    uint32_t room
    uint32_t first_free

ctypedef struct Shard:
    int lock
    uint32_t flows_max
    uint32_t count
    uint32_t first_free
    uint32_t never_used
    uint32_t chunks
    # Of a word of the index, the bits that tell a place; the others are a tag.
    uint32_t places
    uint32_t servers
    uint32_t unanswered
    # When it was last full.
    uint64_t full_ns
    # How often an entry was indexed.
    uint32_t indexed
    uint64_t wheel_tick
    uint64_t seed[6]
    Flow *flows
    Highs *highs
    uint32_t *opened
    Links *links
    uint32_t *index
    uint32_t *last_chunk
    RuleCounts *rules
    FirstFragment *fragments
    uint32_t *fragment_buckets
    uint32_t fragments_max
    uint32_t fragments_count
    uint32_t fragments_free
    uint32_t fragments_oldest
    uint32_t fragments_newest
    uint32_t fragment_buckets_count
    uint64_t reasons[REASONS]
    uint64_t evicted_unanswered
    uint64_t evicted_answered
    uint64_t expired

# A verdict that a tap has taken.
ctypedef struct TapEvent:
    uint64_t now_ns
    Record record
    Quote quote
    PackedVerdict verdict

# A ring of those: the shards take turns with a lock of its own, which is asked for only by a verdict that is taken.
ctypedef struct Tap:
    int lock
    bint is_open
    bint with_allowed
    uint32_t one_in
    uint32_t passing
    uint32_t room
    uint32_t first
    uint32_t count
    uint64_t dropped
    TapEvent *events

# Everything. servers, endpoints and all of the rules are written while every shard is locked; of servers, a shard writes the counts
# and lists of its own while it is locked itself.
ctypedef struct Engine:
    # How many changes wait for the shards or have them: batches let these go first.
    int gate
    uint32_t shards_count
    Shard *shards
    uint32_t server_flows_max
    bint essential_services
    uint64_t loose_until_ns
    Server *servers
    uint32_t servers_used
    uint32_t servers_room
    Endpoint *endpoints
    Pool endpoint_pool
    Index endpoint_index
    Rule *rules
    uint32_t rules_room
    Policy *policies
    Pool policy_pool
    Bundle *bundles
    Pool bundle_pool
    Index bundle_index
    Prefix *prefixes
    Pool prefix_pool
    Index prefix_index
    uint32_t ipv6_prefixes[129]
    Root *roots
    Middle *middles
    Pool middle_pool
    Index middle_index
    Host *hosts
    Pool host_pool
    Index host_index
    uint32_t ipv6_hosts
    uint64_t seed[2]
    uint8_t segment_of[256]
    # Where TCP flags move a connection on the short way, 0 if they take the long one; sixteen states each for packets of the opener
    # and of the answering end. The last row is for UDP. And the time-outs of those states.
    uint8_t quick_moves[257][32]
    uint64_t quick_timeouts_ns[16]
    uint8_t moves[2][5][16]
    uint8_t icmp_kinds[2][256]
    uint8_t icmp_requests[2][256]
    uint8_t protocol_class[256]
    uint64_t timeouts_ns[4][16]
    uint64_t revoked_ns[4]
    uint16_t connected
    uint16_t reopenable
    # A table in a file: its header, then an epoch for each server, then what the shards keep of flows and fragments.
    char *file
    size_t file_bytes
    uint32_t *epochs
    uint32_t taps_open
    Tap taps[TAPS_MAX]

# Packets that are judged with the shard locked once: the time of the next is ``times_step`` on, 0 if they have one for all.
ctypedef struct Batch:
    const Record *records
    PackedVerdict *verdicts
    const uint64_t *times
    size_t times_step
    const Quote *quotes
    uint32_t quotes_count
    uint32_t count

# Those of one shard among others, and where they were.
ctypedef struct Picked:
    uint32_t count
    size_t places[BATCH]
    uint64_t times[BATCH]
    PackedVerdict verdicts[BATCH]
    Record records[BATCH]

# A packet on its way through the stages. kind says what is to be done with it next, found where its flow may be (NIL or NOWHERE if
# not KIND_QUICK or KIND_KEYED).
ctypedef struct Case:
    const Record *record
    Server *server
    # The address of the remote end in the record, and endpoint and ports as they lie in a flow: of a quick one. Of any other, ends
    # is NO_ENDS, which no flow has.
    const uint64_t *remote
    uint64_t ends
    # What is found, if that is one.
    Flow *candidate
    uint64_t hash
    const uint32_t *chunk
    uint32_t found
    # Shard.indexed when that was found out, if it was NOWHERE.
    uint32_t indexed
    # Of a quick one that is NOWHERE: what is known of where it comes from.
    Remote whence
    uint8_t kind
    uint8_t reason
    uint8_t step
    uint8_t opened
    uint8_t is_malformed
    uint32_t rule
    uint32_t flow
    const Quote *quote
    Key key

cdef enum:
    KIND_DECIDED = 0
    KIND_LATER = 1
    KIND_ERROR = 2
    KIND_KEYLESS = 3
    # From here on there is a place in the index to look at.
    KIND_KEYED = 4
    KIND_QUICK = 5

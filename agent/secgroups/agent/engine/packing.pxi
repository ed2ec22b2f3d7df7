# Packet objects as records. A value that fits no header field makes a record that is an invalid packet exactly if the contract says so.

cdef inline uint64_t word_of(bytes address, int at):
    cdef uint64_t word
    memcpy(&word, PyBytes_AS_STRING(address) + at, 8)
    return word


cdef int pack_address(uint64_t *words, address) except -1:
    """Return the IP version."""
    cdef bytes packed = address.packed
    if PyBytes_GET_SIZE(packed) == 4:
        words[0] = 0
        words[1] = 0xFFFF0000u
        memcpy(<char *>words + 12, PyBytes_AS_STRING(packed), 4)
        return 4
    memcpy(words, PyBytes_AS_STRING(packed), 16)
    return 6


cdef inline uint32_t within(value, uint32_t most, bint *fits):
    if 0 <= value <= most:
        return value
    fits[0] = False
    return 0


cdef int pack(packet, uint32_t server, Record *record, Quote *quote) except -1:
    cdef int source_version, destination_version
    cdef uint8_t protocol
    cdef bint fits = True, icmp_fits = True, ignored = True
    memset(record, 0, sizeof(Record))
    source_version = pack_address(record.source, packet.source)
    destination_version = pack_address(record.destination, packet.destination)
    record.server = server
    protocol = record.protocol = within(packet.protocol, 255, &fits)
    record.source_port = within(packet.source_port, 65_535, &ignored)
    record.destination_port = within(packet.destination_port, 65_535, &ignored)
    record.icmp_type = within(packet.icmp_type, 255, &icmp_fits)
    record.icmp_code = within(packet.icmp_code, 255, &icmp_fits)
    record.icmp_id = packet.icmp_id & 0xFFFF
    record.tcp_flags = packet.tcp_flags & 0xFF
    record.direction = packet.direction
    record.fragment = packet.fragment
    record.fragment_id = packet.fragment_id & 0xFFFFFFFF
    record.length = min(packet.length, 0xFFFFFFFF)
    if fits and source_version == destination_version:
        record.ip_version = source_version
    if not icmp_fits:
        # As impossible as an error that quotes nothing. A port that no header holds is 0, which is impossible too.
        record.icmp_type = 3 if source_version == 4 else 1
        return 0
    if packet.quoted is not None:
        pack_quote(packet.quoted, quote)
        record.quote = 1
    return 0


cdef int pack_quote(quoted, Quote *quote) except -1:
    """A value that no header has makes a quote of a packet that was never sent, if it is one that counts for the protocol."""
    cdef int source_version, destination_version
    cdef uint8_t protocol
    cdef bint fits = True, ignored = True
    cdef bint *ports_fit = &ignored
    cdef bint *icmp_fits = &ignored
    memset(quote, 0, sizeof(Quote))
    source_version = pack_address(quote.source, quoted.source)
    destination_version = pack_address(quote.destination, quoted.destination)
    protocol = quote.protocol = within(quoted.protocol, 255, &fits)
    if protocol == TCP or protocol == UDP or protocol == SCTP:
        ports_fit = &fits
    elif protocol == ICMP or protocol == ICMPV6:
        icmp_fits = &fits
    quote.source_port = within(quoted.source_port, 65_535, ports_fit)
    quote.destination_port = within(quoted.destination_port, 65_535, ports_fit)
    quote.icmp_type = within(quoted.icmp_type, 255, icmp_fits)
    quote.icmp_id = within(quoted.icmp_id, 65_535, icmp_fits)
    if fits and source_version == destination_version:
        quote.ip_version = source_version
    return 0

# Taps: whoever watches gets verdicts from a ring; one that has no room is dropped and counted.

cdef void offer(Engine *engine, const Case *case, const PackedVerdict *verdict, uint64_t now_ns) noexcept nogil:
    cdef uint32_t at
    cdef Tap *tap
    cdef TapEvent *event
    for at in range(TAPS_MAX):
        tap = &engine.taps[at]
        if not tap.is_open or (case.reason < REASON_UNKNOWN_SERVER and not tap.with_allowed):
            continue
        sg_lock(&tap.lock)
        if tap.passing:
            tap.passing -= 1
        else:
            tap.passing = tap.one_in - 1
            if tap.count == tap.room:
                tap.dropped += 1
            else:
                event = &tap.events[(tap.first + tap.count) % tap.room]
                event.now_ns, event.record, event.verdict = now_ns, case.record[0], verdict[0]
                event.record.quote = 0
                if case.quote != NULL:
                    event.record.quote = 1
                    event.quote = case.quote[0]
                tap.count += 1
        sg_unlock(&tap.lock)


cdef void offer_decided(Engine *engine, Case *case, const PackedVerdict *verdict, uint64_t now_ns) noexcept nogil:
    """Offer what went the short way or the long one."""
    if case.kind == KIND_QUICK:
        case.reason, case.quote = verdict.reason, NULL
    offer(engine, case, verdict, now_ns)


cdef list read_tap(Tap *tap, uint32_t most):
    """Return time, record, quote and verdict of the oldest events, and make room for others."""
    cdef list found = []
    cdef TapEvent event
    while len(found) < most:
        sg_lock(&tap.lock)
        if not tap.count:
            sg_unlock(&tap.lock)
            break
        event = tap.events[tap.first]
        tap.first = (tap.first + 1) % tap.room
        tap.count -= 1
        sg_unlock(&tap.lock)
        found.append((
            event.now_ns,
            PyBytes_FromStringAndSize(<char *>&event.record, sizeof(Record)),
            PyBytes_FromStringAndSize(<char *>&event.quote, sizeof(Quote)) if event.record.quote else b"",
            PyBytes_FromStringAndSize(<char *>&event.verdict, sizeof(PackedVerdict)),
        ))
    return found

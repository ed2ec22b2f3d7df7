# Compiled rules: an address has labels (networks that cover it, groups it is a member of), a policy is a distinct set of groups, and
# the rules of a policy, direction and label are one bundle. A verdict costs a look-up for each label of the address, a change one
# bundle for each policy that it concerns. Nothing depends on how many rules and members there are.

cdef inline Remote find_remote(const Engine *engine, uint64_t first, uint64_t second) noexcept nogil:
    """Return what is known of an address."""
    cdef Remote remote
    cdef uint32_t number, middle
    remote.host = NIL
    if not is_ipv4_pair(first, second):
        remote.prefix = find_ipv6_prefix(engine, sg_swap64(first), sg_swap64(second))
        if engine.ipv6_hosts:
            remote.host = find_host(engine, first, second)
        return remote
    number = ipv4_number(second)
    remote.prefix = engine.roots[number >> 16].prefix
    if engine.roots[number >> 16].inside:
        middle = find_middle(engine, number >> 8)
        if middle != NIL:
            if engine.middles[middle].prefix:
                remote.prefix = engine.middles[middle].prefix
            if engine.middles[middle].hosts:
                remote.host = find_host(engine, first, second)
                if remote.host != NIL and engine.hosts[remote.host].prefix:
                    remote.prefix = engine.hosts[remote.host].prefix
    return remote


cdef inline Remote find_remote_for(
    const Engine *engine, uint32_t policy, uint8_t direction, const uint64_t *address
) noexcept nogil:
    """The same as far as the rules of a policy are about it, and ask for the memory in which their bundles are indexed."""
    cdef const Side *side = &engine.policies[policy].sides[direction - 1]
    cdef const Index *index = &engine.bundle_index
    cdef Remote remote
    cdef uint32_t prefix, longest = 0, hashed
    remote.prefix, remote.host = 0, NIL
    if not side.networks and not side.groups:
        return remote
    remote = find_remote(engine, address[0], address[1])
    prefix, remote.prefix = remote.prefix, 0
    while prefix:
        hashed = mixed(engine, bundle_key(policy, direction, engine.prefixes[prefix].label), 1)
        if may_have(index, hashed):
            sg_prefetch(&index.words[hashed & index.mask])
            longest = longest if longest else prefix
        prefix = engine.prefixes[prefix].longer_than
    remote.prefix = longest
    return remote


cdef inline void consider_label(
    const Engine *engine, uint32_t policy, const Opening *opening, uint32_t label, uint32_t *best
) noexcept nogil:
    cdef uint32_t bundle = find_bundle_for(engine, bundle_key(policy, opening.direction, label), opening)
    if bundle != NIL:
        consider(engine, &engine.bundles[bundle], opening, best)


cdef inline void consider_whole(
    const Engine *engine, const Side *side, uint32_t label, const Opening *opening, uint32_t *best
) noexcept nogil:
    if side.whole[label - 1] != NIL and is_in_hull(&side.hulls[label - 1], opening):
        consider(engine, &engine.bundles[side.whole[label - 1]], opening, best)


cdef inline uint32_t find_rule_from(
    const Engine *engine, uint32_t policy, const Opening *opening, const Remote *remote
) noexcept nogil:
    """Return the rule with the lowest id of those that allow ``opening``, 0 if none does; ``remote`` is what is known of its remote."""
    cdef const Side *side = &engine.policies[policy].sides[opening.direction - 1]
    cdef uint32_t best = 0, prefix = remote.prefix, at
    consider_whole(engine, side, LABEL_ANYWHERE, opening, &best)
    consider_whole(engine, side, LABEL_IPV4 if opening.is_ipv4 else LABEL_IPV6, opening, &best)
    while prefix:
        consider_label(engine, policy, opening, engine.prefixes[prefix].label, &best)
        prefix = engine.prefixes[prefix].longer_than
    if side.groups and remote.host != NIL:
        for at in range(engine.hosts[remote.host].groups_count):
            consider_label(engine, policy, opening, engine.hosts[remote.host].groups[at], &best)
    return best


cdef uint32_t find_rule(const Engine *engine, uint32_t policy, const Opening *opening) noexcept nogil:
    """The same from nothing."""
    cdef Remote remote = find_remote_for(engine, policy, opening.direction, opening.remote)
    return find_rule_from(engine, policy, opening, &remote)


cdef inline void prefetch_root(const Engine *engine, const uint64_t *address) noexcept nogil:
    """Ask for the memory in which is what is known of a part of IPv4."""
    sg_prefetch(&engine.roots[ipv4_number(address[1]) >> 16])

# Compiled rules: an address has labels (networks that cover it, groups it is a member of), a policy is a distinct set of groups, and
# the rules of a policy, direction and label are one bundle. A verdict costs a look-up for each label of the address, a change one
# bundle for each policy that it concerns. Nothing depends on how many rules and members there are.

cdef inline void consider_label(
    const Engine *engine, uint32_t policy, const Opening *opening, uint32_t label, uint32_t *best
) noexcept nogil:
    cdef uint32_t bundle = find_bundle(engine, bundle_key(policy, opening.direction, label))
    if bundle != NIL:
        consider(engine, &engine.bundles[bundle], opening, best)


cdef uint32_t find_rule(const Engine *engine, uint32_t policy_number, const Opening *opening) noexcept nogil:
    """Return the rule with the lowest id of those that allow ``opening``, 0 if none does."""
    cdef const Policy *policy = &engine.policies[policy_number]
    cdef int way = opening.direction - 1
    cdef uint32_t best = 0, prefix = 0, host = NIL, middle, at, number
    if policy.anywhere[way] != NIL:
        consider(engine, &engine.bundles[policy.anywhere[way]], opening, &best)
    at = policy.all_ipv4[way] if opening.is_ipv4 else policy.all_ipv6[way]
    if at != NIL:
        consider(engine, &engine.bundles[at], opening, &best)
    if not policy.networks[way] and not policy.groups[way]:
        return best
    if opening.is_ipv4:
        number = ipv4_number(opening.remote[1])
        prefix = engine.roots[number >> 16].prefix
        if engine.roots[number >> 16].inside:
            middle = find_middle(engine, number >> 8)
            if middle != NIL:
                if engine.middles[middle].prefix:
                    prefix = engine.middles[middle].prefix
                if engine.middles[middle].hosts:
                    host = find_host(engine, opening.remote[0], opening.remote[1])
                    if host != NIL and engine.hosts[host].prefix:
                        prefix = engine.hosts[host].prefix
    else:
        if policy.networks[way]:
            prefix = find_ipv6_prefix(engine, sg_swap64(opening.remote[0]), sg_swap64(opening.remote[1]))
        if engine.ipv6_hosts:
            host = find_host(engine, opening.remote[0], opening.remote[1])
    if policy.networks[way]:
        while prefix:
            consider_label(engine, policy_number, opening, engine.prefixes[prefix].label, &best)
            prefix = engine.prefixes[prefix].longer_than
    if policy.groups[way] and host != NIL:
        for at in range(engine.hosts[host].groups_count):
            consider_label(engine, policy_number, opening, engine.hosts[host].groups[at], &best)
    return best


cdef inline void prefetch_root(const Engine *engine, const Key *key) noexcept nogil:
    if is_ipv4_pair(key.remote[0], key.remote[1]):
        sg_prefetch(&engine.roots[ipv4_number(key.remote[1]) >> 16])


cdef inline void prefetch_bundles(const Engine *engine, uint32_t policy, const Key *key, uint8_t direction) noexcept nogil:
    """Ask for the memory in which the bundles of the networks around an IPv4 address are indexed."""
    cdef uint32_t prefix
    if not is_ipv4_pair(key.remote[0], key.remote[1]):
        return
    prefix = engine.roots[ipv4_number(key.remote[1]) >> 16].prefix
    while prefix:
        sg_prefetch(
            &engine.bundle_index.words[
                mixed(engine, bundle_key(policy, direction, engine.prefixes[prefix].label), 1) & engine.bundle_index.mask
            ]
        )
        prefix = engine.prefixes[prefix].longer_than

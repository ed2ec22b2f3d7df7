"""The controller: keeps groups, rules, servers and attachments, and tells agents what to enforce."""

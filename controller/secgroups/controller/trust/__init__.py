"""Who may do what: certificates, tokens, roles, and the gate that every call passes."""

"""Real packets: the kernel of a Linux host enforces what the agent was told, by nftables and connection marks."""

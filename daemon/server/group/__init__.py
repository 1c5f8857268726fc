"""The group as parents see it: machines find each other, prove the shared key, and start an engine each."""

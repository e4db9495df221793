"""What happened, told to whoever waits for it: one reader of the event streams for all waiters of this process."""

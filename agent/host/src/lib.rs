//! What Ferry knows of a host: accounts, users, processes, cron, sites.

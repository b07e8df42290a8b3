//! Ferry's redirector, holding, mail and firewall.

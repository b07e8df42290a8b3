//! Ferry's database engine: inspect, dump, load, fence, verify, rehearse.

//! Streams as a hostile source could send them.

/// A dump's stream, put together by hand.
pub struct Stream(Vec<u8>);

impl Stream {
    pub fn new(facts: &serde_json::Value) -> Self {
        Self(b"FERRYDB1".to_vec()).section(1, facts.to_string().as_bytes())
    }

    fn section(mut self, kind: u8, body: &[u8]) -> Self {
        self.0.push(kind);
        for chunk in body.chunks(1000) {
            self.0.extend((chunk.len() as u32).to_be_bytes());
            self.0.extend(chunk);
        }
        self.0.extend([0; 4]);
        self
    }

    pub fn sql(self, sql: &str) -> Self {
        self.section(2, sql.as_bytes())
    }

    pub fn object(self, object: &serde_json::Value) -> Self {
        self.section(3, object.to_string().as_bytes())
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

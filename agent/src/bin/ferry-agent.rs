//! The agent's process; all of it is in the library, where tests and fuzz targets reach it too.

fn main() -> anyhow::Result<()> {
    ferry_agent::main()
}

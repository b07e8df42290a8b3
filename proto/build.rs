//! Compiles the contract with protox, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["ferry/v1/agent.proto", "ferry/v1/operator.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

//! Compiles `event.proto` to Rust, without `protoc`. Messages only: the services that carry them are `rpc`'s.

use std::error;

fn main() -> Result<(), Box<dyn error::Error>> {
    let root = "../../proto";
    let file = "epigraph/v1/event.proto";
    println!("cargo:rerun-if-changed={root}/{file}");
    let descriptors = protox::compile([file], [root])?;
    prost_build::Config::new().bytes([".epigraph.v1.CollectedEvent"]).compile_fds(descriptors)?;
    Ok(())
}

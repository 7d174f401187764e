//! Compiles `proto/` to Rust and to an encoded file descriptor set, without `protoc`.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn error::Error>> {
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(
        ["audit", "collector", "log", "monitor", "signer", "witness"]
            .map(|service| format!("epigraph/v1/{service}.proto")),
        [root],
    )?;
    let target =
        PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("epigraph.v1.descriptors");
    fs::write(target, descriptors.encode_to_vec())?;
    // `Bytes` refers into the received message instead of copying every entry out of it.
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".epigraph.v1.FollowEntries", "crate::entries::FollowEntries")
        .compile_fds(descriptors)?;
    Ok(())
}

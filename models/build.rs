//! Says what to do when libtorch is not where the build was told to find it; the linker's own words would not.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        let library = Path::new(&libtorch).join("lib/libtorch_cpu.so");
        println!("cargo::rerun-if-changed={}", library.display());
        if !library.exists() {
            println!(
                "cargo::error=there is no libtorch at {libtorch} (LIBTORCH): run `make libtorch` to fetch it, or set LIBTORCH to a libtorch 2.11"
            );
        }
    }
}

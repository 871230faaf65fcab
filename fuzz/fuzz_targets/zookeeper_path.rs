#![no_main]

// The file itself: what it stands in needs databases and engines, which take minutes to build with coverage.
#[allow(dead_code)]
#[path = "../../backends/src/registry/zookeeper/tree.rs"]
mod tree;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(path) = std::str::from_utf8(data) else { return };
    for chroot in ["", "/x"] {
        let tree = tree::Tree::new(chroot);
        for root in ["", &tree.address, &tree.config, &tree.load] {
            let path = format!("{root}{path}");
            if let Some(Ok(leaf)) = tree.parse(&path) {
                assert_eq!(tree.leaf(&leaf), path);
                assert!(
                    tree.parents(&leaf)
                        .iter()
                        .all(|parent| path.starts_with(&format!("{parent}/")))
                );
            }
        }
    }
});

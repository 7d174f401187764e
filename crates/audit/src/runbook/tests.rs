use std::path::Path;

use super::document;
use super::shelf::Shelf;

#[test]
fn ten_ship_and_are_described() {
    let shelf = Shelf::shipped().unwrap();
    assert_eq!(shelf.iter().count(), 10);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks.md");
    let described = document::shelf(&shelf);
    if std::env::var_os("EPIGRAPH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &described).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == described,
        "docs/runbooks.md is not what is shipped: run this test with EPIGRAPH_WRITE_DOCS=1"
    );
}

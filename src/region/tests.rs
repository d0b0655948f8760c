use std::fs::File;

use super::*;

fn region(capacity: u64) -> Region {
    let layout = Layout::new(capacity, 2).unwrap();
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(layout.region_bytes()).unwrap();
    let mapping = Mapping::new(&file, layout.region_bytes() as usize).unwrap();
    Region::new(Arc::new(mapping), layout, Identity { checkpoint: 5, generation: 1 }).unwrap()
}

fn commit(region: &Region, slot: usize, version: Version, payload: &[u8]) -> Record {
    let len = payload.len() as u64;
    region.invalidate(slot);
    region.write_payload(slot, 0, payload).unwrap();
    // SAFETY: the test is the region's only user.
    unsafe { region.rehash(slot, Extent { start: 0, end: len }, len) };
    // SAFETY: as above.
    unsafe { region.publish(slot, 1, version, len) }
}

#[test]
fn the_newest_valid_version_wins() {
    let region = region(100_000);
    assert_eq!(region.newest_valid(), None);
    commit(&region, 0, 1, &[1; 70_000]);
    let second = commit(&region, 1, 2, &[2; 80_000]);
    assert_eq!(region.newest_valid(), Some(Found { slot: 1, record: second }));
}

#[test]
fn a_slot_whose_update_began_holds_nothing_and_the_older_one_counts() {
    let region = region(1000);
    let first = commit(&region, 0, 1, &[1; 1000]);
    commit(&region, 1, 2, &[2; 1000]);
    region.invalidate(1);
    assert_eq!(region.record(1), Err(SlotError::Unfinished));
    assert_eq!(region.newest_valid(), Some(Found { slot: 0, record: first }));
}

#[test]
fn any_damaged_byte_makes_the_version_invalid() {
    let region = region(9000);
    let record = commit(&region, 0, 1, &[7; 9000]);
    assert_eq!(region.verify(0), Ok(record));
    let slot = region.layout().slot(0);
    for at in [slot + 9, region.layout().table(0) + 8, region.layout().payload(0) + 8999] {
        let mut byte = [0];
        region.mapping().read_at(at, &mut byte).unwrap();
        region.mapping().write_at(at, &[byte[0] ^ 1]).unwrap();
        assert!(region.verify(0).is_err(), "byte {at} of the region");
        region.mapping().write_at(at, &byte).unwrap();
    }
    assert_eq!(region.verify(0), Ok(record));
}

#[test]
fn a_new_record_over_an_old_payload_is_not_a_version() {
    // What a torn write leaves: the record of version 2 arrived, its payload did not.
    let (whole, torn) = (region(500), region(500));
    commit(&torn, 0, 1, &[1; 500]);
    commit(&whole, 0, 2, &[2; 500]);
    let mut head = [0; 128];
    let at = whole.layout().slot(0);
    whole.mapping().read_at(at, &mut head).unwrap();
    torn.mapping().write_at(at, &head).unwrap();
    assert_eq!(torn.record(0).unwrap().sequence, 2, "the record alone looks right");
    assert_eq!(torn.verify(0), Err(SlotError::Table { version: 2 }));
}

#[test]
fn payload_offsets_are_checked_against_the_capacity_not_the_mapping() {
    let region = region(100);
    assert!(region.write_payload(0, 99, &[1]).is_ok());
    assert!(region.write_payload(0, 100, &[1]).is_err());
    assert!(region.read_payload(0, u64::MAX, &mut [0; 2]).is_err());
}

#[test]
fn a_version_made_of_what_changed_is_the_one_that_a_whole_look_gives() {
    let region = region(40_000);
    let mut bytes = vec![1; 20_000];
    commit(&region, 0, 1, &bytes);
    // Inside, over the end of a chunk, longer, shorter by chunks, and nothing at all.
    let updates: [(&[(u64, u64)], u64); 5] = [
        (&[(5, 6)], 20_000),
        (&[(4000, 9000), (9001, 9002), (19_999, 20_000)], 20_000),
        (&[(19_999, 33_000)], 33_000),
        (&[(99, 100), (9_999, 33_000)], 10_000),
        (&[], 10_000),
    ];
    for (version, (ranges, len)) in (2..).zip(updates) {
        let (source, slot) = ((version % 2) as usize, 1 - (version % 2) as usize);
        bytes.resize(len as usize, 0);
        let mut changed = RangeSet::new(40_000);
        for &(start, end) in ranges {
            changed.insert(start, end);
            bytes[start.min(len) as usize..end.min(len) as usize].fill(version as u8);
        }
        region.invalidate(slot);
        region.bring_up_to_date(source, slot, Extent { start: 0, end: 40_000 });
        region.write_payload(slot, 0, &bytes).unwrap();
        // SAFETY: the test is the region's only user.
        let root = unsafe { region.rehash_changed(source, slot, &changed, len) }.unwrap();
        let record = region.publish_root(slot, 1, version, len, root);
        assert_eq!(region.verify(slot), Ok(record), "I2 no torn read: version {version}");
        assert_eq!(region.newest_valid(), Some(Found { slot, record }));
    }
}

#[test]
fn a_table_that_was_damaged_before_does_not_become_right_by_a_commit() {
    let region = region(40_000);
    commit(&region, 0, 1, &[1; 40_000]);
    region.mapping().write_at(region.layout().table(0) + 8, &[1, 2, 3]).unwrap();
    region.bring_up_to_date(0, 1, Extent { start: 0, end: 40_000 });
    let mut changed = RangeSet::new(40_000);
    changed.insert(20_000, 20_001);
    // SAFETY: the test is the region's only user.
    let root = unsafe { region.rehash_changed(0, 1, &changed, 40_000) }.unwrap();
    region.publish_root(1, 1, 2, 40_000, root);
    assert_eq!(region.verify(1), Err(SlotError::Table { version: 2 }));
}

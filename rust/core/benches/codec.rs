//! Throughput of float frames on one thread, on real pages of bf16: one page as it is, and as many as make 2 MiB.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pfimg_core::codec::float::{self, Width};

/// What precedes the pages in their files.
const NPY_HEADER: usize = 128;

fn floats(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("float");
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    let data = ["kv_k_pages.npy", "kv_v_pages.npy"].map(|file| {
        let file = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(file)).expect("part of the repository");
        file[NPY_HEADER..].to_vec()
    });
    let data = data.concat();
    for len in [73_728, 2 << 20] {
        let page = &data[..len];
        let frame = float::encode(page, Width::Two).expect("real pages shrink");
        let mut out = vec![0; len];
        group.throughput(Throughput::BytesDecimal(len as u64));
        group.bench_function(format!("sniff/{len}"), |bencher| bencher.iter(|| float::sniff(black_box(page))));
        group.bench_function(format!("encode/{len}"), |bencher| bencher.iter(|| float::encode(black_box(page), Width::Two)));
        group.bench_function(format!("decode/{len}"), |bencher| bencher.iter(|| float::decode_into(black_box(&frame), &mut out)));
    }
    group.finish();
}

criterion_group!(benches, floats);
criterion_main!(benches);

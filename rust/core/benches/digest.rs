//! Throughput of each SHA-256 kernel that this processor has, by number and length of blobs, on one thread.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pfimg_core::digest;

/// Blobs hashed together, and bytes of each: one long stream, the sizes of KV pages, and fewer blobs than fill the lanes.
const SHAPES: [(usize, usize); 7] = [(1, 2 << 20), (4, 73_728), (11, 73_728), (160, 4096), (32, 65_536), (32, 73_728), (32, 2 << 20)];

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sha256");
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for (blobs, len) in SHAPES {
        // Not zeros, which may all be one page of memory.
        let bytes: Vec<u8> = (0..blobs * len).map(|i| i.to_le_bytes()[0]).collect();
        let blobs: Vec<&[u8]> = bytes.chunks_exact(len).collect();
        group.throughput(Throughput::BytesDecimal(bytes.len() as u64));
        for kernel in digest::kernels() {
            let id = BenchmarkId::new(kernel.name(), format!("{} x {len}", blobs.len()));
            group.bench_function(id, |bencher| bencher.iter(|| kernel.hash_each(black_box(&blobs), |_, hash| _ = black_box(hash))));
        }
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);

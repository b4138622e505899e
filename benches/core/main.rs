//! The core without system calls: route tables and the packet path.

mod forward;
mod offload;
mod route;
mod tables;

criterion::criterion_group!(
    benches,
    route::memory,
    route::lookup,
    route::lookup_v6,
    route::build,
    route::publish,
    forward::forward,
    forward::checksums,
    offload::copy_and_sum,
    offload::segment,
    offload::coalesce
);
criterion::criterion_main!(benches);

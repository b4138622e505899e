//! The core without its system calls: route tables and the packet path.

mod forward;
mod route;
mod tables;

criterion::criterion_group!(
    benches,
    route::memory,
    route::lookup,
    route::build,
    route::publish,
    forward::forward,
    forward::checksums
);
criterion::criterion_main!(benches);

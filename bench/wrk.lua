-- For wrk: an optional method and body size after "--", and the outcome as one line of JSON. Times are microseconds.

function init(args)
  if args[1] then
    wrk.method = args[1]
    wrk.body = string.rep("x", tonumber(args[2]))
    wrk.headers["Content-Type"] = "application/octet-stream"
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "bytes": %d, "micros": %d, "unconnected": %d, "cut": %d, "refused": %d, "late": %d, "p50": %d, "p99": %d}\n',
    summary.requests, summary.bytes, summary.duration,
    errors.connect, errors.read + errors.write, errors.status, errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end

-- Arguments: the method, and a file that holds the body. Prints what was measured as one line of JSON.
function init(args)
  wrk.method = args[1]
  if args[2] then
    local file = io.open(args[2], 'rb')
    wrk.body = file:read('*a')
    file:close()
    wrk.headers['Content-Type'] = 'application/json'
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "p99_ms": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end

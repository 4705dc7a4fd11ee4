-- Postern asked about each request, by HAProxy 2.6 or later and nothing besides: see haproxy.cfg.
-- http-request lua.postern http://127.0.0.1:3000/.postern/auth

-- What the app is told about a person. More families and headers of your routes' own go in here too.
local identity = {
    "x-forwarded-user", "x-forwarded-preferred-username", "x-forwarded-email", "x-forwarded-name",
    "x-forwarded-groups", "x-forwarded-discord-id", "x-postern-assertion",
}

-- What Postern has to know of a request. Nothing else leaves HAProxy, least of all what a client says about itself.
local told = {
    "cookie", "authorization", "accept", "accept-language", "user-agent", "origin", "x-requested-with", "purpose", "sec-purpose",
    "sec-fetch-mode", "sec-fetch-dest", "sec-fetch-site", "sec-fetch-user",
}

-- About the connection, or made anew: not to be passed on with an answer.
local between = { ["connection"] = true, ["keep-alive"] = true, ["content-length"] = true, ["transfer-encoding"] = true }

local is_identity = {}
for _, name in ipairs(identity) do is_identity[name] = true end

local function asked(txn, given)
    local fields = {
        ["x-forwarded-method"] = { txn.f:method() },
        ["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" },
        ["x-forwarded-host"] = { txn.sf:req_fhdr("host") },
        ["x-forwarded-uri"] = { txn.sf:pathq() },
        ["x-forwarded-for"] = { txn.sf:src() },
    }
    for _, name in ipairs(told) do
        local values = given[name]
        if values ~= nil then
            fields[name] = {}
            for place = 0, #values do table.insert(fields[name], values[place]) end -- HAProxy counts from 0
        end
    end
    -- A WebSocket is known by its handshake; over HTTP/2 there is no key in it (RFC 8441).
    if given["upgrade"] ~= nil then fields["sec-websocket-key"] = { "asked" } end
    return fields
end

local function refuse(txn, answer)
    local status = tonumber(answer.status) or 0
    if status < 300 or status > 599 then return end -- no answer at all: haproxy.cfg refuses
    local reply = txn:reply({ status = status, reason = answer.reason })
    for name, values in pairs(answer.headers or {}) do
        if not between[name] then
            for place = 0, #values do reply:add_header(name, values[place]) end
        end
    end
    if txn.f:method() ~= "HEAD" then reply:set_body(answer.body or "") end
    txn:done(reply)
end

core.register_action("postern", { "http-req" }, function(txn, question)
    local given = txn.http:req_get_headers()
    -- Deleted under every name that an app could take for one of these: CGI and WSGI write _ for -.
    for name in pairs(given) do
        local folded = name:lower():gsub("_", "-")
        if is_identity[folded] then txn.http:req_del_header(name) end
    end
    local answer = core.httpclient():get({ url = question, headers = asked(txn, given) })
    if answer == nil or tonumber(answer.status) ~= 200 then return refuse(txn, answer or {}) end
    for _, name in ipairs(identity) do
        local values = answer.headers[name]
        if values ~= nil and values[0] ~= "" then txn.http:req_set_header(name, values[0]) end
    end
    txn:set_var("txn.postern", "allowed")
end, 1)

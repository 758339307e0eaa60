-- For wrk: looks at every answer, and says at the end what it counted. Arguments: the header to look at, or "body", and the
-- answers that are right.
local threads = {}
local header, right

function setup(thread)
	table.insert(threads, thread)
end

function init(arguments)
	header, right, wrong = arguments[1], {}, 0
	for i = 2, #arguments do
		right[arguments[i]] = true
	end
end

function response(status, headers, body)
	local answer = header == "body" and body or headers[header]
	if status ~= 200 or not right[answer] then
		wrong = wrong + 1
		if wrong == 1 then
			print("wrong answer: " .. status .. " " .. tostring(answer))
		end
	end
end

function done(summary)
	local wrong = 0
	for _, thread in ipairs(threads) do
		wrong = wrong + thread:get("wrong")
	end
	local e = summary.errors
	print(string.format("requests %d failed %d", summary.requests, wrong + e.connect + e.read + e.write + e.timeout))
end
